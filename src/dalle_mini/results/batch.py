"""Thousands of prompts into one folder, in a run that may be killed at any moment and started again.

    OUTPUT/batch.json            what the run draws with; another run may not use the folder
           pictures/<id>/        01.png ... of each prompt, and its results.json
           results.parquet       one row a picture, or a failure, written when all is done; results.csv without pyarrow

A prompt's folder appears whole or not at all, so it alone tells that the prompt is done; a folder that lost a picture
since is drawn again.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

import jax
from msgspec import Meta

from dalle_mini.errors import UserError
from dalle_mini.results.prompts import Entry
from dalle_mini.results.write import REPORT, write_folder
from dalle_mini.runtime.files import remove_leftovers, write_whole
from dalle_mini.runtime.locks import Busy, lock
from dalle_mini.runtime.parsing import check, read_json, read_object, read_record
from dalle_mini.settings import PER_PROMPT, GenerationSettings, check_whole

if TYPE_CHECKING:
    from dalle_mini.generation.canvas import Canvas
    from dalle_mini.pipeline import DalleMini

RUN, PICTURES = "batch.json", "pictures"
TABLES = ("results.parquet", "results.csv")  # the second where pyarrow, which an extra brings, is not installed
COLUMNS = {
    "id": "string",
    "prompt": "string",
    "rank": "int32",
    "candidate": "int32",
    "score": "float32",
    "file": "string",
    "seed": "int64",
    "guidance": "float32",
    "last_guidance": "float32",
    "negative_prompt": "string",
    "temperature": "float32",
    "top_k": "int32",
    "top_p": "float32",
    "error": "string",
}
SLICE = 256  # prompts that are encoded at a time


Number = Annotated[float, Meta(ge=-1e30, le=1e30)]


class ImageEntry(TypedDict):
    file: Annotated[str, Meta(pattern=r"^[^/\\\0]{1,255}$")]
    candidate: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    score: Number | None


class Settings(TypedDict, total=False):
    guidance: Number | None
    last_guidance: Number | None
    negative_prompt: str | None
    temperature: Number | None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None
    top_p: Number | None


class Report(TypedDict):
    """The fields that a batch reads in the `results.json` of a prompt's folder."""

    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    settings: Settings
    pictures: list[ImageEntry]
    asked: NotRequired[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Done:
    """The outcome of a batch: prompts drawn now, found drawn, failed; and where the table is."""

    drawn: int
    found: int
    failed: int
    table: Path


class Batch:
    """A file's prompts on their way into a folder.

    Args:
        entries: the prompts.
        output: the folder.
        settings: of all prompts, where their own options do not say otherwise.
        overwrite: draw anew what the folder has of another prompt, or with other options, under the id of one of these.
    """

    def __init__(
        self, entries: Sequence[Entry], output: Path, settings: GenerationSettings, *, overwrite: bool = False
    ):
        has_arrow = importlib.util.find_spec("pyarrow") is not None
        self.table = output / TABLES[0 if has_arrow else 1]
        self.entries, self.output, self.settings, self.overwrite = entries, output, settings, overwrite
        self.failures: dict[str, str] = {}

    def run(
        self, pipe: DalleMini, canvas: Canvas | None = None, *, batch_size: int | None = None, progress=None
    ) -> Done:
        """Draw what is not drawn yet, and write the table.

        In several processes of `jax.distributed` each draws its share of the prompts.

        Raises:
            UserError: the folder holds another run, or one that draws now, or cannot be written. Drawn images stay.
        """
        if batch_size is not None:
            check_whole("batch_size", batch_size, 1)
        with self._alone():
            return self._run(pipe, canvas, batch_size, progress)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other run of this machine draw into the folder."""
        with contextlib.ExitStack() as held:
            if jax.process_index() == 0:
                try:
                    self.output.mkdir(parents=True, exist_ok=True)
                    folder = os.open(self.output, os.O_RDONLY)
                except OSError as error:
                    reason = f"{self.output} cannot be written ({error.strerror}): name another --output"
                    raise UserError(reason) from None
                held.callback(os.close, folder)
                try:
                    lock(folder)
                except Busy:
                    raise UserError(
                        f"{self.output}: another run is drawing into this folder: wait for it, or name another --output"
                    ) from None
                except OSError:
                    pass  # a file system without locks
            yield

    def _run(self, pipe: DalleMini, canvas: Canvas | None, batch_size: int | None, progress) -> Done:
        self._claim(pipe, canvas)
        todo = [entry for entry in self.entries if not self._is_done(entry)]
        if not self.overwrite:
            self._check_replaced(todo)
        _wait_for_all("all know what is to be drawn")  # what another draws now must not look as if it had been there
        found = len(self.entries) - len(todo)
        mine = todo[jax.process_index() :: jax.process_count()]
        for entry, result in self._results(pipe, mine, canvas, batch_size, progress):
            target = self.output / PICTURES / entry.id
            write_folder(result, target, pipe.provenance(), id=entry.id, asked=self._asked(entry))
        if jax.process_count() > 1:
            self._share_failures()
        _wait_for_all("all prompts are drawn")
        if jax.process_index() == 0:
            self._write_table()
        return Done(len(todo) - len(self.failures), found, len(self.failures), self.table)

    def _claim(self, pipe: DalleMini, canvas: Canvas | None) -> None:
        """Make the folder this run's, or see that it is. A batch that was begun before goes on by its own sampler."""
        file, earlier = self.output / RUN, self._begun()
        if earlier:
            try:
                sampler = earlier.get("sampler", "rank")  # earlier versions do not tell: there was one
                self.settings = dataclasses.replace(self.settings, sampler=sampler)
            except UserError as error:
                raise UserError(f"{file}: {error}: name another --output") from None
        provenance = pipe.provenance()
        run = {
            "candidates": self.settings.candidates,
            "keep": self.settings.keep,
            "sampler": self.settings.sampler,
            **{name: getattr(self.settings, name) for name in PER_PROMPT},
            "weights": {part: model["sha256"] for part, model in provenance["models"].items()},
            "dtype": provenance["dtype"],
            "canvas": canvas.digest if canvas else None,
        }
        # Folders of earlier versions do not tell seed and sampling; their prompts' folders do.
        names = [name for name in run if earlier.get(name, run[name]) != run[name]]
        if names:
            raise UserError(f"{self.output} holds a batch with another {' and '.join(names)}: name another --output")
        if jax.process_index() == 0:
            write_whole(file, (json.dumps(run, indent=2) + "\n").encode())
            for folder in (self.output, self.output / PICTURES):
                remove_leftovers(folder)
            for file in self.output.glob(".failed-*.partial"):
                file.unlink(missing_ok=True)
        _wait_for_all("the folder is this run's")

    def _begun(self) -> dict[str, Any]:
        """The settings that the folder's batch was begun with; none in a new folder."""
        file, pictures = self.output / RUN, self.output / PICTURES
        if pictures.is_symlink():  # what is in the place of a prompt's folder would be replaced there
            raise UserError(f"{pictures} is a link: remove it, or name another --output")
        if os.path.lexists(file):
            try:
                return read_object(file)
            except UserError as error:
                raise UserError(f"{error}: name another --output") from None
        if pictures.exists():
            raise UserError(f"{self.output} holds images of no batch: name another --output")
        return {}

    def _asked(self, entry: Entry) -> dict:
        """The prompt and the settings that its folder must have been drawn with to count as done."""
        settings = {name: getattr(self.settings, name) for name in PER_PROMPT} | entry.options
        return {"prompt": entry.prompt, **settings}

    def _is_done(self, entry: Entry) -> bool:
        if entry.error:
            return False
        folder = self.output / PICTURES / entry.id
        report = read_report(folder)
        return report is not None and report.get("asked") == self._asked(entry) and _is_whole(folder, report)

    def _check_replaced(self, todo: Sequence[Entry]) -> None:
        """Check that no images of something else are in a prompt's place: nobody asked to lose them.

        Raises:
            UserError: there are.
        """
        for entry in todo:
            report = read_report(self.output / PICTURES / entry.id)
            was = report.get("asked") if report else None
            if entry.error or not isinstance(was, dict) or was == self._asked(entry):
                continue
            names = [name for name, value in self._asked(entry).items() if was.get(name) != value]
            raise UserError(
                f"{self.output / PICTURES / entry.id} was drawn with another {' and '.join(names)} than prompt "
                f"{entry.id} has now: name another --output, or redraw it with --overwrite"
            )

    def _results(self, pipe, entries, canvas, batch_size, progress) -> Iterator:
        """(entry, result) of each prompt that can be drawn."""
        total = len(entries) * self.settings.candidates
        for start in range(0, len(entries), SLICE):
            requests = list(self._requests(pipe, entries[start : start + SLICE], canvas))
            pipe.note_idle([request for _, request in requests])
            requests.sort(key=lambda pair: repr(pair[1].kind))  # those that may share a call, together
            before = start * self.settings.candidates

            def report(stage, done, _, before=before):
                scale = pipe.model.image_length if stage == "tokens" else 1
                progress(stage, before * scale + done, total * scale)

            def run(some, report=report):
                yield from pipe.engine.run(some, report if progress else None, batch_size=batch_size, alone=True)

            yield from self._each(requests, run)

    def _each(self, requests, run) -> Iterator:
        """(entry, result) of each request. Where drawing fails they are drawn one by one, so that no other fails."""
        results, done = run([request for _, request in requests]), 0
        try:
            for result in results:
                done += 1
                yield requests[done - 1][0], result
            return
        except UserError as error:
            if len(requests) == 1:
                self.failures[requests[0][0].id] = str(error)
                return
        for pair in requests[done:]:
            yield from self._each([pair], run)

    def _requests(self, pipe, entries: Sequence[Entry], canvas) -> Iterator:
        """(entry, request) of each prompt that makes sense; the others are noted as failures."""
        for entry in entries:
            try:
                if entry.error:
                    raise UserError(entry.error)
                settings = dataclasses.replace(self.settings, **entry.options)
                (request,) = pipe.requests([entry.prompt], settings, canvas)
            except UserError as error:
                # It is told of a list with one prompt in it.
                self.failures[entry.id] = re.sub(r"^prompt 1\b", f"prompt {entry.id}", str(error))
            else:
                yield entry, request

    def _share_failures(self) -> None:
        """Let the first process, which writes the table, know what failed in the others."""
        name = f".failed-{jax.process_index()}.partial"
        write_whole(self.output / name, json.dumps(self.failures).encode())
        _wait_for_all("all have told what failed")
        if jax.process_index() == 0:
            for number in range(jax.process_count()):
                file = self.output / f".failed-{number}.partial"
                try:
                    self.failures |= read_record(file, dict[str, str])
                    file.unlink()
                except (OSError, UserError) as error:
                    raise UserError(
                        f"{file}: cannot be read ({error}): the processes of a batch need a folder that all of them see"
                    ) from None

    def _write_table(self) -> None:
        rows: list[dict[str, Any]] = []
        for entry in self.entries:
            # Half a character of JSON's escapes is no text: it failed, and its row must not fail the table.
            common = {"id": entry.id, "prompt": entry.prompt.encode("utf-8", "replace").decode()}
            if entry.id in self.failures:
                rows.append(common | {"error": self.failures[entry.id]})
                continue
            report = read_report(self.output / PICTURES / entry.id)
            if report is None:
                raise UserError(f"{self.output / PICTURES / entry.id} is gone: run the same command again")
            settings = {name: report["settings"].get(name) for name in PER_PROMPT} | {"seed": report["seed"]}
            for rank, picture in enumerate(report["pictures"], 1):
                rows.append(
                    common
                    | settings
                    | {"rank": rank, "candidate": picture["candidate"], "score": picture["score"]}
                    | {"file": f"{PICTURES}/{entry.id}/{picture['file']}"}
                )
        write_whole(self.table, _as_parquet(rows) if self.table.suffix == ".parquet" else _as_csv(rows))
        for name in {*TABLES} - {self.table.name}:  # of an earlier run, with or without pyarrow
            (self.output / name).unlink(missing_ok=True)


def _as_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow.parquet import write_table

    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    sink = pyarrow.BufferOutputStream()
    write_table(pyarrow.Table.from_pylist(rows, schema), sink)
    return sink.getvalue().to_pybytes()


def _as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _is_whole(folder: Path, report: dict) -> bool:
    """Whether the pictures that a report names are there."""
    try:
        return all((folder / picture["file"]).stat().st_size for picture in report["pictures"])
    except (OSError, KeyError, TypeError):
        return False


def _wait_for_all(what: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def read_report(folder: str | os.PathLike) -> dict | None:
    """The `results.json` of a prompt's folder, or None where there is none that can be read."""
    try:
        return check(read_json(Path(folder) / REPORT), Report)
    except ValueError:
        return None
