"""The training loop: steps over the batches, with averaging, checkpoints, evaluation and something to look at.

::

    figures = train(preset("person-pose"), open_data("coco", config), Path("runs/people"))

The same call trains on one CPU, one GPU, or as one of many processes that torchrun started (`train.distributed`).
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sdk.detector import Detector
from sdk.errors import ConfigError, SdkError
from sdk.spec import InputSpec, ModelSpec

from .batches import Batch, TensorTargets, TrainingBatches, batch_loader
from .checkpoint import Checkpoint, init_from, normalisation_of, read_checkpoint, save_checkpoint
from .config import TrainConfig, config_to_dict
from .data import TrainData
from .distributed import Processes, joined_processes, own_device, parallel, synchronise_batch_norm
from .evaluate import TorchBackend, evaluate_detector
from .losses import Losses, loss_counts, stacked_losses
from .models import CenterNet, build_model, load_imagenet_backbone
from .models.imagenet import IMAGENET_MEAN_BGR, IMAGENET_STD_BGR
from .optim import build_optimizer, learning_rate
from .preprocessing import normalised
from .quantisation import fake_quantise, read_int8
from .sample_pictures import Image, sample_pictures, stacked
from .specs import STRIDE, spec_from_config
from .summary import History, figures_table, write_summary, write_whole

_log = logging.getLogger(__name__)

REPORT_EVERY = 50  # steps; losses are averaged over them
NUM_PICTURES = 4  # held-back samples to look at
CHOSEN_BY = ("AP", "keypoint_AP", "AP3D")  # the best weights are those with the largest sum of these figures


class Averaged:
    """Exponential moving average of a model's weights and batch-norm statistics."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        # Early on the average forgets fast, or it would remember the fresh weights for thousands of steps.
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)


class Stopped(SystemExit):
    """The run was asked to stop, and has saved where it is; the code is 128 + the signal's number, as in shells."""


class StopRequest:
    """Notes SIGINT and SIGTERM, so that the step at work is finished and saved; a second SIGINT stops at once.

    Attributes:
        signal: number of the signal that came, 0 before.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


class Trainer:
    """One run: model, optimiser, average and progress.

    Args:
        config: of the run.
        data: training samples and the held-back ones.
        out: folder for last.pth, best.pth, summary, pictures and TensorBoard.
        processes: that train together.

    Raises:
        ConfigError: the device or the architecture does not exist, or cannot do what the config asks.
    """

    def __init__(self, config: TrainConfig, data: TrainData, out: Path, processes: Processes | None = None) -> None:
        torch.manual_seed(config.seed)
        self.config, self.data, self.out = config, data, out
        self.processes = processes or Processes()
        self.device = own_device(config.device, self.processes)
        _check_device(config, self.device)
        self.spec: ModelSpec = spec_from_config(
            config, data.train.class_names, data.train.keypoints, trained_on=data.description
        )
        self.total_steps = config.max_steps or math.ceil(config.epochs * len(data.train) / config.batch)
        self.batches = TrainingBatches(
            data.train,
            config,
            total_steps=self.total_steps,
            stride=STRIDE,
            rank=self.processes.rank,
            world=self.processes.world,
        )
        self.model = build_model(config.architecture, self.spec.heads)
        _check_sizes(config, self.model.input_multiple)
        synchronise_batch_norm(self.model, self.processes, self.device)
        # channels_last is the layout in which oneDNN and cuDNN run 3x3 convolutions fastest
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        side = max(64, self.model.input_multiple)
        probe = torch.zeros(1, 3, side, side, device=self.device)
        self._int8 = None
        if config.fake_quantise:
            path = Path(config.fake_quantise)
            self._int8 = self.processes.share(read_int8(path) if self.processes.is_first else None)
            self._round(self.model)
        self._parallel = parallel(_Stacks(self.model), self.processes, probe)
        self._network: Any = torch.compile(self._parallel) if config.compile else self._parallel
        self.optimizer = build_optimizer(self.model, config)
        # Small float16 gradients would vanish; the scaler keeps them in range, and skips a step that overflows.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.average = Averaged(self.model, config.ema_decay)
        self.history = History()
        self.step = 0
        self.best_ap = -1.0

    def begin(self, *, resume: bool, init: Path | None) -> None:
        """Continue from last.pth, or start from given weights, or afresh. Only the first process reads files.

        Raises:
            ConfigError: there is a last.pth that nobody asked to continue, or two files to start from.
        """
        last = self.out / "last.pth"
        exists = self.processes.share(last.is_file())
        if resume and exists:
            self.resume(last)
        elif exists:
            raise ConfigError(f"{last} exists; add --resume to continue it, or choose another --out")
        elif init is not None and self.config.backbone:
            raise ConfigError(f"--init {init} and backbone={self.config.backbone} both give weights; leave one out")
        elif init is not None:
            self.initialise(init)
        elif self._int8 is not None:
            raise ConfigError(f"fake_quantise={self._int8.path} goes on from trained weights; name them with --init")
        elif self.config.backbone:
            self._load_backbone(Path(self.config.backbone))

    def resume(self, path: Path) -> None:
        """Continue where `path` (a last.pth) stopped; the config of this run holds, also where it differs."""
        checkpoint = self.processes.share(read_checkpoint(path) if self.processes.is_first else None)
        assert checkpoint is not None
        training = checkpoint.training
        if training is None:
            raise ConfigError(f"{path} is a finished model without optimiser state; use --init to start from it")
        if checkpoint.spec.heads != self.spec.heads or checkpoint.config.architecture != self.config.architecture:
            raise ConfigError(f"{path} holds another network than this run's; resume with the same --preset and --set")
        self._warn_of_differences(path, checkpoint)
        self._expect_pixels_as(checkpoint.spec.input)
        self.model.load_state_dict(training["model"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.average.state = {name: value.to(self.device) for name, value in checkpoint.weights.items()}
        self.step, self.best_ap = training["step"], training["best_ap"]
        # Files of the first version hold no more than that.
        self.history = History.from_dict(training.get("history", {}))
        if training.get("scaler"):
            self.scaler.load_state_dict(training["scaler"])
        if "rng" in training:
            torch.set_rng_state(training["rng"])
        if self.device.type == "cuda" and "cuda_rng" in training:
            torch.cuda.set_rng_state(training["cuda_rng"], self.device)

    def initialise(self, path: Path) -> None:
        """Start from another checkpoint's weights."""
        if self.processes.is_first:
            fresh = init_from(self.model, path)
            if fresh:
                _log.warning("%d tensors start fresh, first %s", len(fresh), ", ".join(fresh[:5]))
        self._expect_pixels_as(self.processes.share(normalisation_of(path) if self.processes.is_first else None))
        self._start_from_the_first()

    def run(self) -> dict[str, float]:
        """Train to the end; returns the last evaluation's figures.

        Raises:
            Stopped: by SIGINT or SIGTERM, after the step at work was finished and saved.
            SdkError: the loss is not finite any more, or a checkpoint cannot be written.
        """
        if self.processes.is_first:
            self.out.mkdir(parents=True, exist_ok=True)
        with StopRequest() as request, _Progress(self) as progress:
            if self._is_evaluation_due():
                self._after_step(progress)  # a run that was stopped may have left that to the next
            for passes, waited_s in self._steps(request):
                started = time.perf_counter()
                terms = self.train_step(passes)
                progress.add(terms, seconds=waited_s + time.perf_counter() - started, waited_s=waited_s)
                stop = self.processes.largest(request.signal)
                if stop:
                    progress.report()
                    self._stop(stop)
                self._after_step(progress)
        self._finish()
        return self.history.last_figures

    def train_step(self, passes: Sequence[Batch]) -> Losses:
        """One update by all passes of a step; returns this process's share of each weighted loss term.

        The losses are divided by the counts of all passes and processes, so that their sum, and the gradient,
        are those of the whole batch at once.

        Raises:
            SdkError: a loss or the gradient is not finite; the weights are as before.
        """
        self._set_mode_and_rate()
        parts = [(batch.images.to(self.device), batch.targets.to(self.device)) for batch in passes]
        counts = self.processes.sum(torch.stack([loss_counts(targets) for _, targets in parts]).sum(dim=0))
        terms: Losses = {}
        for number, (images, targets) in enumerate(parts):
            with self._exchange(number == len(parts) - 1):
                part = self._losses(images, targets, counts)
                # DistributedDataParallel divides the sum of all gradients by the number of processes.
                total = self.processes.world * torch.stack(list(part.values())).sum()
                self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            for name, term in part.items():
                terms[name] = terms[name] + term.detach() if name in terms else term.detach()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self._check_finite(terms, norm, passes)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.model, self.step)
        self.step += 1
        return terms

    def evaluate(self) -> dict[str, float]:
        """Figures of the averaged weights on the held-back pictures; keeps the best as best.pth."""
        # Running averages of batch norms differ between processes on CPUs; the first one's count.
        self.processes.share_tensors(self.average.state.values())
        figures = evaluate_detector(
            self._detector(score_threshold=0.0),
            self.data.held_back,
            self.spec,
            rank=self.processes.rank,
            world=self.processes.world,
            gather=self.processes.gather,
        )
        self.history.add_figures(self.step, figures)
        score = sum(figures[name] for name in CHOSEN_BY if name in figures)
        if score > self.best_ap:
            self.best_ap, self.history.best_step = score, self.step
            self._write(self.out / "best.pth", with_training=False)
        return figures

    def save(self, path: Path) -> None:
        """Write everything that a resume needs."""
        self._write(path, with_training=True)

    def pictures(self) -> list[Image]:
        """A few held-back samples: truth, what the averaged weights find, heatmap; (H, W, 3) uint8 BGR each."""
        indices = range(min(NUM_PICTURES, len(self.data.held_back)))
        return list(sample_pictures(self._detector(), self.data.held_back, indices))

    def _detector(self, *, score_threshold: float | None = None) -> Detector:
        """Of the averaged weights, rounding as the network in training does."""
        model = build_model(self.config.architecture, self.spec.heads)
        model.load_state_dict(self.average.state)
        self._round(model.to(self.device))
        return Detector(TorchBackend(model, self.spec, device=self.config.device), score_threshold=score_threshold)

    def _round(self, model: CenterNet) -> None:
        if self._int8 is not None:
            fake_quantise(model, self._int8)

    def _steps(self, request: StopRequest) -> Iterator[tuple[list[Batch], float]]:
        """The passes of each step that is left, and the seconds of waiting for them."""
        accumulate = self.config.accumulate
        items = range(self.step * accumulate, self.total_steps * accumulate)
        loader = iter(batch_loader(self.batches, items, self.config.workers))
        while self.step < self.total_steps:
            asked = time.perf_counter()
            try:
                passes = [next(loader) for _ in range(accumulate)]
            except SdkError as err:
                message = _own_message(err)
                raise type(err)(message) from err
            except RuntimeError:
                if not request.signal:
                    raise
                # A signal to the whole group of processes ended the workers too; there is no further step.
                self._stop(request.signal)
            yield passes, time.perf_counter() - asked

    def _losses(self, images: Tensor, targets: TensorTargets, counts: Tensor) -> Losses:
        dtype = torch.float16 if self.config.precision == "fp16" else torch.bfloat16
        with torch.autocast(self.device.type, dtype, enabled=self.config.precision != "fp32"):
            stacks = self._network(normalised(images, self.spec))
        whole = [{name: head.float() for name, head in heads.items()} for heads in stacks]
        return stacked_losses(whole, targets, self.config, counts)

    def _exchange(self, now: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged between processes in the last pass of a step only."""
        if now or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        waiting: AbstractContextManager[None] = self._parallel.no_sync()
        return waiting

    def _set_mode_and_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.total_steps)
        self.optimizer.zero_grad(set_to_none=True)
        self._parallel.train()
        # Statistics of a batch would change from step to step what is rounded; INT8 has one value for them.
        if self.config.freeze_batch_norm or self._int8 is not None:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _check_finite(self, terms: Losses, norm: Tensor, passes: Sequence[Batch]) -> None:
        """Every process stops where the loss of one is not finite, and all name the pictures of that one."""
        is_bad = not all(bool(torch.isfinite(term)) for term in terms.values())
        overflows = not bool(torch.isfinite(norm))
        if self.scaler.is_enabled() and self.scaler.get_scale() > 1:
            overflows = False  # the scaler skips the step and halves its factor
        if not self.processes.largest(int(is_bad or overflows)):
            return
        values = {name: float(term) for name, term in terms.items()}
        found = self.processes.gather((is_bad, values, self._names(passes)))
        blamed = [row for row in found if row[0]] or found
        names = [name for _, _, names in blamed for name in names]
        more = f" and {len(names) - 16} more" if len(names) > 16 else ""
        raise SdkError(
            f"training diverged at step {self.step}: the losses are {blamed[0][1]} with the pictures "
            f"{', '.join(names[:16])}{more}; lower learning_rate, or look at these pictures (nothing of this step was "
            "saved, --resume continues before it)"
        )

    def _names(self, passes: Sequence[Batch]) -> list[str]:
        """Of the pictures of a step: what the source calls them, or their numbers."""
        name = getattr(self.data.train, "name", str)
        return [name(index) for batch in passes for index in self.batches.indices(batch)]

    def _after_step(self, progress: _Progress) -> None:
        config, evaluates = self.config, self._is_evaluation_due()
        if evaluates:
            progress.add_figures(self.evaluate())
        if (self.step == self.total_steps or self.step % config.pictures_every == 0) and self.processes.is_first:
            progress.show(self.pictures())
        if evaluates or self.step % config.checkpoint_every == 0:
            progress.report()  # the checkpoint holds the history, and who resumes knows nothing of unfinished means
            self.save(self.out / "last.pth")

    def _is_evaluation_due(self) -> bool:
        was_done = self.history.figures and self.history.figures[-1][0] == self.step
        is_milestone = self.step == self.total_steps or self.step % self.config.evaluate_every == 0
        return self.step > 0 and is_milestone and not was_done

    def _stop(self, number: int) -> None:
        last = self.out / "last.pth"
        self.save(last)
        if self.processes.is_first:
            name = signal.Signals(number).name
            tqdm.write(f"stopped by {name} after step {self.step}; --resume continues {last}", file=sys.stderr)
        raise Stopped(128 + number)

    def _finish(self) -> None:
        if not self.processes.is_first:
            return
        facts = {
            "steps": self.step,
            "pictures_seen": self.step * self.config.batch,
            "data": self.data.description,
            "processes": self.processes.world,
            "device": str(self.device),
            "torch": torch.__version__,
            "config": config_to_dict(self.config),
        }
        write_summary(self.out, self.history, facts)
        if table := figures_table(self.history):
            tqdm.write(table)

    def _load_backbone(self, path: Path) -> None:
        if self.processes.is_first:
            load_imagenet_backbone(self.model, path)
        width, height = self.config.size
        self._expect_pixels_as(InputSpec(width, height, IMAGENET_MEAN_BGR, IMAGENET_STD_BGR))
        self._start_from_the_first()

    def _expect_pixels_as(self, learnt: InputSpec | None) -> None:
        """Weights go on with the mean and std under which they were learnt; a fresh network has mean 0."""
        assert learnt is not None
        self.spec = replace(self.spec, input=replace(self.spec.input, mean=learnt.mean, std=learnt.std))

    def _start_from_the_first(self) -> None:
        self.processes.share_tensors(self.model.state_dict().values())
        self.average = Averaged(self.model, self.config.ema_decay)

    def _warn_of_differences(self, path: Path, checkpoint: Checkpoint) -> None:
        before = {**config_to_dict(checkpoint.config), "data": checkpoint.spec.trained_on}
        now = {**config_to_dict(self.config), "data": self.spec.trained_on}
        changes = [f"{name}={now[name]!r} (was {before[name]!r})" for name in now if now[name] != before[name]]
        if changes and self.processes.is_first:
            _log.warning("%s is continued with other options: %s", path, ", ".join(changes))

    def _write(self, path: Path, *, with_training: bool) -> None:
        if not self.processes.is_first:
            return
        checkpoint = Checkpoint(self.spec, self.config, self.average.state, self._training() if with_training else None)
        save_checkpoint(path, checkpoint)

    def _training(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "step": self.step,
            "best_ap": self.best_ap,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history.to_dict(),
            "rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            out["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return out


def train(
    config: TrainConfig, data: TrainData, out: Path, *, resume: bool = False, init: Path | None = None
) -> dict[str, float]:
    """Train a model and leave last.pth, best.pth, the summary and sample pictures in `out`.

    Args:
        config: of the run.
        data: from `train.data.open_data`.
        out: folder of the results.
        resume: continue from out/last.pth where it exists.
        init: checkpoint to start from.

    Returns:
        The figures of the last evaluation on held-back pictures.
    """
    with joined_processes(config.device) as processes:
        trainer = Trainer(config, data, out, processes)
        trainer.begin(resume=resume, init=init)
        return trainer.run()


class _Stacks(nn.Module):
    """Gives every stack's heads; this is what is compiled and distributed, so that the model keeps its own names."""

    def __init__(self, model: CenterNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return self.model.forward_stacks(x)


class _Progress:
    """What people see of a run: the bar, TensorBoard, pictures. Silent in all processes but the first."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=trainer.device))
        self._steps, self._seconds, self._waited_s = 0, 0.0, 0.0

    def __enter__(self) -> _Progress:
        trainer = self._trainer
        is_first = trainer.processes.is_first
        self._bar = tqdm(
            total=trainer.total_steps, initial=trainer.step, unit="step", smoothing=0.05, disable=not is_first
        )
        self._writer = None
        if is_first:
            # What a killed run wrote after its last checkpoint is written again.
            self._writer = SummaryWriter(str(trainer.out / "tensorboard"), purge_step=trainer.step + 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def add(self, terms: Losses, *, seconds: float, waited_s: float) -> None:
        """Count a step; every so many, show their means."""
        for name, term in terms.items():
            self._sums[name] += term
        self._steps, self._seconds, self._waited_s = self._steps + 1, self._seconds + seconds, self._waited_s + waited_s
        self._bar.update()
        if self._trainer.step % REPORT_EVERY == 0:
            self.report()

    def add_figures(self, figures: dict[str, float]) -> None:
        step = self._trainer.step
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(f"held_back/{name}", value, step)
            tqdm.write(f"step {step}: " + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))

    def show(self, pictures: Sequence[Image]) -> None:
        """Sample pictures to TensorBoard, and the latest as pictures.jpg."""
        trainer = self._trainer
        if self._writer is not None:
            for number, picture in enumerate(pictures):
                rgb = picture[..., ::-1]
                self._writer.add_image(f"held_back/{number}", rgb, trainer.step, dataformats="HWC")
        write_whole(trainer.out / "pictures.jpg", stacked(pictures))

    def report(self) -> None:
        """Means since the last report, to the bar, TensorBoard and the history. A meeting of all processes."""
        if not self._steps:
            return
        trainer = self._trainer
        names = list(self._sums)
        sums = trainer.processes.sum(torch.stack([self._sums[name] for name in names]))
        means = dict(zip(names, (sums / self._steps).tolist(), strict=True))
        history = trainer.history
        history.add_losses(trainer.step, means)
        history.steps += self._steps
        history.seconds += self._seconds
        history.waited_s += self._waited_s
        if self._writer is not None:
            self._bar.set_postfix_str(" ".join(f"{name}={value:.3f}" for name, value in means.items()), refresh=False)
            for name, value in means.items():
                self._writer.add_scalar(f"loss/{name}", value, trainer.step)
            self._writer.add_scalar("loss/total", sum(means.values()), trainer.step)
            rate = learning_rate(trainer.config, trainer.step, trainer.total_steps)
            self._writer.add_scalar("rate", rate, trainer.step)
            self._writer.add_scalar("waiting_for_data", self._waited_s / self._seconds, trainer.step)
        self._sums.clear()
        self._steps, self._seconds, self._waited_s = 0, 0.0, 0.0


def _check_sizes(config: TrainConfig, multiple: int) -> None:
    for width, height in [config.size, *((w, h) for _, w, h in config.small_size_until)]:
        if width % multiple or height % multiple:
            raise ConfigError(f"size {width}x{height}: {config.architecture} takes multiples of {multiple} pixels")


def _check_device(config: TrainConfig, device: torch.device) -> None:
    """What this machine cannot do, said before the first step."""
    if config.precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision=fp16 needs a GPU, and device is {device}; set precision=bf16 or precision=fp32")
    if config.compile and device.type == "cuda" and find_spec("triton") is None:
        raise ConfigError("compile=true needs the package triton on a GPU; install it, or set compile=false")
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if config.compile and device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        raise ConfigError(
            f"compile=true needs a C++ compiler, and there is no {' or '.join(compilers)}; install g++, or set "
            "compile=false"
        )


def _own_message(err: SdkError) -> str:
    """What went wrong, without the traceback that PyTorch puts around an error of a worker process."""
    text = str(err)
    return text.strip().splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text
