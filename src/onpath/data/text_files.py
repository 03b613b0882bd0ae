"""Text on disk: .txt and .jsonl, each as .gz too, or a folder of them, read in pieces and checked line by line."""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from io import BufferedIOBase
from pathlib import Path
from typing import Any

_SHIPPED = "onpath:"
_PLAIN, _ROWS = (".txt", ".md"), (".jsonl",)
_PIECE = 2**20  # bytes of plain text that are tokenised together


@dataclass(frozen=True)
class Passage:
    """A piece of a document. ends: whether the document ends here.

    file, line: where it begins. row: what `line` counts where the lines of the text are not those of the file, else "".
    """

    text: str
    ends: bool
    file: str
    line: int
    row: str = ""

    def where(self, num_lines: int = 0) -> str:
        """The place of what stands so many lines behind its beginning."""
        return f"{self.file}, {self.row} {self.line}" if self.row else f"{self.file}, line {self.line + num_lines}"


@dataclass(frozen=True)
class TextPlace:
    """Files of text, and what tells whether they have changed.

    files: (path, time of the last change in ns, bytes) of each, in the order of their names.
    column: of a .jsonl row that holds the text. separator: what stands between the documents of a .txt file, "" where
    a file is one document.
    """

    files: tuple[tuple[str, int, int], ...]
    column: str = "text"
    separator: str = ""

    @property
    def num_bytes(self) -> int:
        """Of the text, roughly: packed files hold about three times their size."""
        return sum(size * (3 if path.endswith(".gz") else 1) for path, _, size in self.files)

    def passages(self) -> Iterator[Passage]:
        """The text in order; ValueError with file and line where it is none."""
        found = False
        for path, _, _ in self.files:
            file = Path(path)
            read = _documents if _kind(file) in _ROWS else (_separated if self.separator else _pieces)
            for passage in read(file, self):
                found = True
                yield passage
        if not found:
            beside = "" if len(self.files) == 1 else ", nor do the files beside it"
            raise ValueError(
                f"{self.files[0][0]}: holds no text{beside}; a text of some windows is needed; check the path"
            )


def place_of(path: str, column: str = "text", separator: str = "") -> TextPlace:
    """The files that `path` names: one, all in a folder and those below it, or `onpath:…` that ships with the package.

    ValueError where there is none, or one of another kind.
    """
    name = path.removeprefix(_SHIPPED)
    file = Path(str(resources.files("onpath.data") / name)) if name != path else Path(path)
    if file.is_dir():
        files = sorted(p for p in file.rglob("*") if p.is_file() and _kind(p) in (*_PLAIN, *_ROWS))
        if not files:
            raise ValueError(f"{path}: the folder holds no text; needed are files ending in {_ENDINGS}; check the path")
    elif file.is_file():
        files = [file]
        if _kind(file) not in (*_PLAIN, *_ROWS):
            raise ValueError(
                f"{path}: the ending is {''.join(file.suffixes[-2:])!r}; text is kept in files ending in {_ENDINGS}; "
                "rename or convert it (kind: hub_text reads parquet, csv and more)"
            )
    else:
        where = "" if file.is_absolute() else f" in {Path.cwd()}"
        raise ValueError(
            f"{path}: there is no such file or folder{where}; give the path of a file ending in {_ENDINGS}, or of a "
            "folder of them"
        )
    stats = [(p, p.stat()) for p in files]
    return TextPlace(tuple((str(p), s.st_mtime_ns, s.st_size) for p, s in stats), column, separator)


_ENDINGS = ", ".join((*_PLAIN, *_ROWS)) + ", or one of these with .gz"


def _kind(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _opened(path: Path) -> BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _blocks(path: Path, whole_lines: bool = False) -> Iterator[bytes]:
    """The bytes of a file in pieces that end with a line, or where a line is longer than that, with a character."""
    rest = b""
    try:
        with _opened(path) as file:
            while block := file.read(_PIECE):
                block = rest + block
                cut = block.rfind(b"\n") + 1
                if not cut and not whole_lines and len(block) >= 4 * _PIECE:
                    cut = len(block) - 4
                    while block[cut] & 0xC0 == 0x80:  # inside a character
                        cut -= 1
                rest = block[cut:]
                if cut:
                    yield block[:cut]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: cannot be unpacked as .gz ({error}); it is torn or another kind of file; copy it again, or give "
            "it the ending that it is"
        ) from error
    if rest:
        yield rest


def _pieces(path: Path, place: TextPlace) -> Iterator[Passage]:
    """A file of plain text as one document."""
    line, before = 1, None
    for block in _blocks(path):
        if before is not None:
            yield before
        text = _decoded(block, path, line)
        text = text.removeprefix("\ufeff") if line == 1 and before is None else text
        before = Passage(text, False, str(path), line)
        line += block.count(b"\n")
    if before is not None:
        yield Passage(before.text, True, before.file, before.line)


def _separated(path: Path, place: TextPlace) -> Iterator[Passage]:
    """A file of plain text as the documents between its separators, without empty ones."""
    open_text, line = "", 1
    for piece in _pieces(path, place):
        *whole, open_text = (open_text + piece.text).split(place.separator)
        for text in whole:
            if text.strip():
                yield Passage(text.strip("\n"), True, str(path), line)
            line += (text + place.separator).count("\n")
    if open_text.strip():
        yield Passage(open_text.strip("\n"), True, str(path), line)


def _documents(path: Path, place: TextPlace) -> Iterator[Passage]:
    """The rows of a .jsonl file, without empty ones."""
    for line, row in json_rows(path):
        text = text_of(row, place.column, f"{path}, line {line}")
        if text:
            yield Passage(text, True, str(path), line, row="line")


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a .jsonl file; ValueError at the first line that is none."""
    number = 0
    for block in _blocks(path, whole_lines=True):
        for raw in block.removesuffix(b"\n").split(b"\n"):
            number += 1
            yield number, _row(_decoded(raw, path, number), f"{path}, line {number}")


def _row(text: str, where: str) -> dict[str, Any]:
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise ValueError(f"{where}: is empty; write one JSON object a line, or take the line out")
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: is not JSON ({error}) but {cut(text)}; write one object a line, whole") from error
    if not isinstance(row, dict):
        raise ValueError(f'{where}: is not an object but {cut(text)}; write one with its columns, like {{"text": "…"}}')
    return row


def missing(row: Mapping[str, Any], column: str, where: str, what: str) -> str:
    """The message for a column that a row has not; `what`: it should hold."""
    nearest = difflib.get_close_matches(column.lower(), [str(name) for name in row], n=1, cutoff=0.5)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    there = ", ".join(map(repr, row)) or "none"
    return f"{where}: the column {column!r} is missing; there are {there}{hint}; name the one that holds {what}"


def text_of(row: Mapping[str, Any], column: str, where: str) -> str:
    """The text in a column of a row; ValueError where there is none."""
    if column not in row:
        raise ValueError(missing(row, column, where, "the text, or add it"))
    text = row[column]
    if not isinstance(text, str):
        raise ValueError(f"{where}: {column!r} is {cut(text)}, {type(text).__name__}; text is needed; repair the row")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: {column!r} is {cut(text)}, with half of a surrogate pair; whole characters are needed; repair "
            "the row (it was cut inside a character when it was written)"
        ) from error
    return text


def _decoded(block: bytes, path: Path, line: int) -> str:
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError as error:
        line += block[: error.start].count(b"\n")
        found = block[max(0, error.start - 10) : error.start + 10]
        raise ValueError(
            f"{path}, line {line}: is not UTF-8 ({error.reason} at {found!r}); text must be UTF-8; convert it, for "
            "instance with iconv -f latin1 -t utf-8"
        ) from error


def cut(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value.strip() if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:60]} …"
