"""The training loop: one pass over the batches, with averaging, checkpoints and evaluation."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sdk.errors import ConfigError, SdkError
from sdk.spec import ModelSpec

from .batches import Batch, TrainingBatches, batch_loader
from .checkpoint import Checkpoint, init_from, read_checkpoint, save_checkpoint
from .config import TrainConfig
from .data import TrainData
from .losses import losses
from .models import build_model
from .optim import build_optimizer, learning_rate
from .preprocessing import normalised
from .specs import STRIDE, spec_from_config

_log = logging.getLogger(__name__)


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


class Trainer:
    """One run: model, optimiser, average and progress.

    Args:
        config: of the run.
        data: training samples and the held-back ones.
        out: folder for last.pth, best.pth and TensorBoard.

    Raises:
        ConfigError: the device or the architecture does not exist.
    """

    def __init__(self, config: TrainConfig, data: TrainData, out: Path) -> None:
        torch.manual_seed(config.seed)
        self.config, self.data, self.out = config, data, out
        self.device = _device(config.device)
        self.spec: ModelSpec = spec_from_config(config, data.train.class_names, trained_on=data.description)
        self.total_steps = config.max_steps or math.ceil(config.epochs * len(data.train) / config.batch)
        # channels_last is the layout in which oneDNN and cuDNN run 3x3 convolutions fastest
        self.model = build_model(config.architecture, self.spec.heads)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.model, config)
        self.average = Averaged(self.model, config.ema_decay)
        self.step = 0
        self.best_ap = -1.0

    def resume(self, path: Path) -> None:
        """Continue where `path` (a last.pth) stopped; the config of this run holds, also where it differs."""
        checkpoint = read_checkpoint(path)
        training = checkpoint.training
        if training is None:
            raise ConfigError(f"{path} is a finished model without optimiser state; use --init to start from it")
        if checkpoint.spec.heads != self.spec.heads or checkpoint.config.architecture != self.config.architecture:
            raise ConfigError(f"{path} holds another network than this run's; resume with the same --preset and --set")
        self.model.load_state_dict(training["model"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.average.state = checkpoint.weights
        self.step, self.best_ap = training["step"], training["best_ap"]

    def initialise(self, path: Path) -> None:
        """Start from another checkpoint's weights."""
        fresh = init_from(self.model, path)
        if fresh:
            _log.warning("%d tensors start fresh, first %s", len(fresh), ", ".join(fresh[:5]))
        self.average = Averaged(self.model, self.config.ema_decay)

    def run(self) -> dict[str, float]:
        """Train to the end; returns the last evaluation's figures."""
        figures: dict[str, float] = {}
        self.out.mkdir(parents=True, exist_ok=True)
        with SummaryWriter(str(self.out / "tensorboard")) as writer:
            for terms in self._steps(writer):
                if self.step % self.config.evaluate_every == 0 or self.step == self.total_steps:
                    figures = self.evaluate(writer)
                    self.save(self.out / "last.pth")
                elif self.step % self.config.checkpoint_every == 0:
                    self.save(self.out / "last.pth")
                del terms
        return figures

    def evaluate(self, writer: SummaryWriter) -> dict[str, float]:
        """AP of the averaged weights on the held-back pictures; keeps the best as best.pth."""
        from .evaluate import evaluate_weights

        figures = evaluate_weights(self.average.state, self.spec, self.config, self.data.held_back)
        for name, value in figures.items():
            writer.add_scalar(f"held_back/{name}", value, self.step)
        score = sum(figures[name] for name in ("AP", "keypoint_AP") if name in figures)
        tqdm.write(f"step {self.step}: " + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        if score > self.best_ap:
            self.best_ap = score
            save_checkpoint(self.out / "best.pth", self._checkpoint(with_training=False))
        return figures

    def save(self, path: Path) -> None:
        save_checkpoint(path, self._checkpoint(with_training=True))

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """One update; returns the weighted loss terms."""
        rate = learning_rate(self.config, self.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        images = normalised(batch.images.to(self.device), self.spec)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            heads = self.model(images)
        terms = losses(heads, batch.targets.to(self.device), self.config)
        total = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        if not torch.isfinite(norm):
            values = {name: float(term.detach()) for name, term in terms.items()}
            raise SdkError(f"training diverged at step {self.step}: the losses are {values}; lower learning_rate")
        self.optimizer.step()
        self.average.update(self.model, self.step)
        self.step += 1
        return {name: term.detach() for name, term in terms.items()}

    def _steps(self, writer: SummaryWriter) -> Iterator[dict[str, Tensor]]:
        batches = TrainingBatches(
            self.data.train,
            self.config,
            total_steps=self.total_steps,
            flip_pairs=self.spec.keypoint_flip_pairs,
            stride=STRIDE,
        )
        loader = batch_loader(batches, range(self.step, self.total_steps), self.config.workers)
        sums: dict[str, float] = defaultdict(float)
        waited_s, started = 0.0, time.perf_counter()
        with tqdm(total=self.total_steps, initial=self.step, unit="step", smoothing=0.05) as bar:
            asked = time.perf_counter()
            for batch in loader:
                waited_s += time.perf_counter() - asked
                terms = self.train_step(batch)
                for name, term in terms.items():
                    sums[name] += float(term)
                bar.update()
                if self.step % 50 == 0:
                    means = {name: value / 50 for name, value in sums.items()}
                    elapsed = time.perf_counter() - started
                    _write_progress(writer, bar, self, means, waited_s / elapsed)
                    sums.clear()
                    waited_s, started = 0.0, time.perf_counter()
                yield terms
                asked = time.perf_counter()

    def _checkpoint(self, *, with_training: bool) -> Checkpoint:
        training: dict[str, Any] | None = None
        if with_training:
            training = {
                "step": self.step,
                "best_ap": self.best_ap,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
        return Checkpoint(self.spec, self.config, self.average.state, training)


def train(
    config: TrainConfig, data: TrainData, out: Path, *, resume: bool = False, init: Path | None = None
) -> dict[str, float]:
    """Train a model and leave last.pth and best.pth in `out`.

    Args:
        config: of the run.
        data: from `train.data.open_data`.
        out: folder of the results.
        resume: continue from out/last.pth where it exists.
        init: checkpoint to start from.

    Returns:
        The figures of the last evaluation on held-back pictures.
    """
    trainer = Trainer(config, data, out)
    last = out / "last.pth"
    if resume and last.is_file():
        trainer.resume(last)
    elif last.exists():
        raise ConfigError(f"{last} exists; add --resume to continue it, or choose another --out")
    elif init is not None:
        trainer.initialise(init)
    return trainer.run()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as err:  # AssertionError: this PyTorch was built without CUDA
        reason = str(err).strip().splitlines()[0]
        raise ConfigError(f"device={name!r} cannot be used ({reason}); set device=cpu, or leave it out") from err
    return device


def _write_progress(
    writer: SummaryWriter, bar: tqdm[Any], trainer: Trainer, means: dict[str, float], waiting: float
) -> None:
    bar.set_postfix_str(" ".join(f"{name}={value:.3f}" for name, value in means.items()), refresh=False)
    for name, value in means.items():
        writer.add_scalar(f"loss/{name}", value, trainer.step)
    writer.add_scalar("loss/total", sum(means.values()), trainer.step)
    writer.add_scalar("rate", learning_rate(trainer.config, trainer.step, trainer.total_steps), trainer.step)
    writer.add_scalar("waiting_for_data", waiting, trainer.step)
