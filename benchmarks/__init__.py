"""Every figure of docs/benchmarks.md, measured: `make bench`, or `python -m benchmarks NAME ...`."""
