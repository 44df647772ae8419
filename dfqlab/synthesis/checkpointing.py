"""What a job keeps while it runs: finished batches and the state of the running one, on disk where it is asked to."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from dfqlab import checkpoints
from dfqlab.errors import CheckpointError
from dfqlab.images import SyntheticSet

if TYPE_CHECKING:
    from dfqlab.synthesis.descent import BatchDescent

IMAGES_FILE = "images.safetensors"
_PROGRESS, _BATCH = "progress.safetensors", "batch-{}.safetensors"
_LOCK = ".lock"
_KIND_PROGRESS, _KIND_BATCH = "synthesis in progress", "synthetic batch"


@dataclass(frozen=True)
class Checkpoint:
    """Where a job can go on after it was stopped, or killed.

    Attributes:
        folder: holds the running batch, the finished ones, and at the end the whole set, `images.safetensors`.
        seconds: how long at least between two states of the running batch; 0 writes one at every step.
        any_plan: go on under another plan or torch version too: the bytes will be others.
    """

    folder: Path
    seconds: float = 10.0
    any_plan: bool = False

    def clear(self) -> None:
        """Forget what a job left here.

        Raises:
            CheckpointError: another job is at work here.
        """
        with self.held():
            (self.folder / IMAGES_FILE).unlink(missing_ok=True)
            self.tidy()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other jobs out of the folder: two in one would overwrite each other's state.

        The lock is let go of however the process ends; its file stays, because removing it would let a third job in.

        Raises:
            CheckpointError: another job is at work in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise CheckpointError(f"another job is at work in {self.folder}: choose another folder, or wait") from None
        try:
            yield
        finally:
            lock.release()

    def tidy(self) -> None:
        """Remove all but the set: the state first, so that a state never lacks the batches that it counts."""
        (self.folder / _PROGRESS).unlink(missing_ok=True)
        for pattern in (
            _BATCH.format("*"),
            *(f".{name}.*.part" for name in (IMAGES_FILE, _PROGRESS, _BATCH.format("*"))),
        ):
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)


class Kept:
    """What a job has so far. Without a checkpoint all of it is in memory; with one no more than a batch is.

    Attributes:
        finished: the whole set, where the checkpoint's folder has it already.
        batches: how many are done.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        empty: SyntheticSet,
        count: int,
        labels: Tensor | None,
        method: Mapping[str, Any],
    ) -> None:
        self.checkpoint, self.empty, self.count, self.labels = checkpoint, empty, count, labels
        self.method = dict(method)
        self.finished: SyntheticSet | None = None
        self.batches = 0
        self.in_memory: list[Tensor] = []
        self.stopped: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self.saved = time.monotonic()
        if checkpoint is not None:
            self._open(checkpoint)

    def resume(self, run: BatchDescent) -> None:
        """Bring the first batch of this process to where it was stopped."""
        if self.stopped is not None:
            run.resume(*self.stopped)
            self.stopped = None

    def save(self, run: BatchDescent, *, now: bool = False) -> None:
        """Write the state of the running batch, if it is time."""
        if self.checkpoint is not None and (now or time.monotonic() - self.saved >= self.checkpoint.seconds):
            self._write_progress(*run.state())

    def add(self, images: Tensor, *, whole: bool) -> None:
        """Keep a batch as it is now; one that is done leaves the memory where there is a disk to keep it."""
        images = images[: self.count - self.batches * len(images)]
        if self.checkpoint is None or not whole:
            self.in_memory.append(images)
            self.batches += whole
            return
        checkpoints.save(self._batch_file(self.batches), {"images": images}, kind=_KIND_BATCH, facts={})
        self.batches += 1
        self._write_progress({}, {})

    def collected(self, *, partial: bool) -> SyntheticSet:
        """The set of all that is kept. With a checkpoint it lies in the folder and is read from there when needed."""
        if self.checkpoint is None:
            images = torch.cat(self.in_memory)
            return replace(self.empty, images=images, labels=self._labels(len(images)), partial=partial)
        path = self.checkpoint.folder / IMAGES_FILE
        count = min(self.batches * self.empty.plan["batch_size"], self.count) + sum(map(len, self.in_memory))
        replace(self.empty, partial=partial).save_parts(path, self._parts(), count, self._labels(count))
        if not partial:
            self.checkpoint.tidy()
        return SyntheticSet.load(path)

    def _labels(self, count: int) -> Tensor | None:
        return None if self.labels is None else self.labels[:count]

    def _parts(self) -> Iterator[Tensor]:
        if self.checkpoint is not None:
            for k in range(self.batches):
                yield checkpoints.load(self._batch_file(k), kind=_KIND_BATCH)[0]["images"]
        yield from self.in_memory

    def _batch_file(self, k: int) -> Path:
        assert self.checkpoint is not None
        return self.checkpoint.folder / _BATCH.format(f"{k:05d}")

    def _write_progress(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        assert self.checkpoint is not None
        facts = {"job": self._description(), "batches": self.batches, "run": facts}
        checkpoints.save(self.checkpoint.folder / _PROGRESS, tensors, kind=_KIND_PROGRESS, facts=facts)
        self.saved = time.monotonic()

    def _open(self, checkpoint: Checkpoint) -> None:
        finished, progress = checkpoint.folder / IMAGES_FILE, checkpoint.folder / _PROGRESS
        found = SyntheticSet.load(finished) if finished.exists() else None
        if found is not None and not found.partial:  # a partial one is what a stopped job has to show, and no more
            self._check_same(_described(found, len(found), found.labels), finished)
            self.finished = found
            checkpoint.tidy()
        elif progress.exists():
            tensors, facts = checkpoints.load(progress, kind=_KIND_PROGRESS)
            self._check_same(facts["job"], progress)
            self.batches = int(facts["batches"])
            self.stopped = (tensors, facts["run"]) if tensors else None

    def _description(self) -> dict[str, Any]:
        return {**_described(self.empty, self.count, self.labels), **self.method}

    def _check_same(self, found: dict[str, Any], path: Path) -> None:
        assert self.checkpoint is not None
        for name, ours in self._description().items():
            theirs = found.get(name, ours)  # a finished set knows its settings, not the objective that they made
            if name == "plan" and self.checkpoint.any_plan and theirs["batch_size"] == ours["batch_size"]:
                continue
            if theirs != ours:
                raise CheckpointError(
                    f"{path} is of a job with {name} {theirs!r}, and this one has {ours!r}: it cannot go on from "
                    "there. Ask for that job again, or choose another folder"
                    + (", or allow any plan, for other bytes" if name == "plan" else "")
                )


def _described(job: SyntheticSet, count: int, labels: Tensor | None) -> dict[str, Any]:
    """What must be the same for a job to go on, as JSON gives it back."""
    digest = None if labels is None else hashlib.sha256(labels.numpy().tobytes()).hexdigest()[:16]
    facts = {name: value for name, value in job.facts.items() if name != "partial"}
    return {**facts, "count": count, "labels": digest}
