"""A bundle in one zip file. Its entries are stored as they are, so it holds no more than its own size.

Weights hardly compress, and a reader that accepts no compression cannot be made to write more than it was sent.
Entries follow each other without a gap from the first byte to the directory, so nothing hides between them. The
format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT.
"""

import stat
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from edgeft.artifact import CHUNK_BYTES, FileRecord
from edgeft.errors import BundleError
from edgeft.runtime.bundle_folder import write_folder
from edgeft.runtime.bundle_manifest import (
    MANIFEST,
    MAX_FILES,
    SIGNATURE,
    check_content,
    check_listing,
    parse_manifest,
    small_file_problem,
)
from edgeft.runtime.bundle_names import MAX_NAME_BYTES, names_problem

LOCAL_HEADER = struct.Struct("<4s5H3L2H")
"""Signature, version, flags, method, time, date, CRC, sizes (2), lengths of name and extra field."""
END = struct.Struct("<4s4H2LH")
"""End of central directory: signature, disks (2), entries (2), size and start of the directory, comment length."""
ENTRY_BYTES = 46
MAX_DIRECTORY_BYTES = MAX_FILES * (ENTRY_BYTES + MAX_NAME_BYTES + 64)
ENCRYPTED, SIZES_BEHIND = 1, 8
"""Flags of an entry: its content is encrypted; its sizes follow its content."""
EPOCH = (1980, 1, 1, 0, 0, 0)
UNIX, REGULAR = 3, stat.S_IFREG | 0o644


class ZipBundle:
    """An open zip file whose listing is what its manifest says; contents are checked as they are read.

    Raises BundleError on everything a bundle may not be. To be used in a `with` block.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
        try:
            with _as_bundle_error(path):
                _check_end(path, self._file)
                self._zip = _opened(path, self._file)
                self._entries = _checked_entries(path, self._zip.infolist())
                _check_no_gap(path, self._file, list(self._entries.values()), self._zip.start_dir)
                self.manifest = parse_manifest(self._small(MANIFEST) or b"", path)
                check_listing(path, self.manifest, {name: e.file_size for name, e in self._entries.items()})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def signature(self) -> bytes | None:
        """The bytes of the signature; None when there is none."""
        return self._small(SIGNATURE)

    def check(self) -> None:
        """Read every file once. Raises BundleError when one is not what the manifest says."""
        for name, record in self.manifest.files.items():
            self._read(name, record, None)

    def unpack(self, target: Path) -> None:
        """Write the bundle as the folder `target`, whole or not at all.

        Raises BundleError when a file is not what the manifest says or `target` exists, ArtifactError when the disk
        refuses.
        """
        write_folder(target, self._write_into)

    def _write_into(self, folder: Path) -> None:
        for name, record in self.manifest.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("xb") as file:
                self._read(name, record, file)
        if (signature := self.signature()) is not None:
            (folder / SIGNATURE).write_bytes(signature)
        (folder / MANIFEST).write_bytes(self.manifest.raw)

    def _read(self, name: str, record: FileRecord, to: BinaryIO | None) -> None:
        with _as_bundle_error(self.path), self._zip.open(self._entries[name]) as source:
            check_content(self.path, name, record, cast(BinaryIO, source), to)

    def _small(self, name: str) -> bytes | None:
        """The content of the manifest or the signature; None when there is none."""
        entry = self._entries.get(name)
        if problem := small_file_problem(name, entry.file_size if entry else None):
            raise BundleError(f"{self.path}: {problem}")
        with _as_bundle_error(self.path):
            return self._zip.read(entry) if entry else None


def write_zip(folder: Path, names: Sequence[str], out: Path) -> None:
    """Write the files `names` of `folder` as the zip file `out`; the same files give the same bytes.

    Stored, sorted, without dates, owners or machine.
    """
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as packed:
        for name in sorted(names):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr = UNIX, REGULAR << 16
            entry.file_size = (folder / name).stat().st_size  # so that large ones get 64-bit fields
            with packed.open(entry, "w") as to, (folder / name).open("rb") as source:
                while chunk := source.read(CHUNK_BYTES):
                    to.write(chunk)


def _check_end(path: Path, file: BinaryIO) -> None:
    """The file begins with an entry and ends with the end record, which announces no more than a bundle may hold."""
    start = file.read(4)
    if start != b"PK\x03\x04":
        raise BundleError(f"{path}: not a bundle (it starts with {start!r}); give an .edgeft file or folder")
    n_bytes = file.seek(0, 2)
    file.seek(max(0, n_bytes - END.size))
    record = file.read(END.size)
    if len(record) < END.size or record[:4] != b"PK\x05\x06":
        raise BundleError(f"{path}: the file is cut short or something hangs behind its end; fetch it again")
    _, disk, first_disk, here, entries, directory_bytes, _, comment = END.unpack(record)
    if disk or first_disk or here != entries or comment:
        raise BundleError(f"{path}: not a zip file that edgeft wrote (several disks, or a comment)")
    if entries > MAX_FILES or directory_bytes > MAX_DIRECTORY_BYTES:
        raise BundleError(f"{path}: announces {entries} files, more than the {MAX_FILES} allowed; do not use it")
    file.seek(0)


def _opened(path: Path, file: BinaryIO) -> zipfile.ZipFile:
    """The directory read; places outside the file make zipfile seek there, which the system refuses."""
    try:
        return zipfile.ZipFile(file)
    except (OSError, ValueError, OverflowError) as error:
        raise BundleError(f"{path}: the zip file is damaged ({error}); fetch it again") from None


def _checked_entries(path: Path, listed: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The entries by name: plain files of allowed names, stored as they are."""
    if len(listed) > MAX_FILES:
        raise BundleError(f"{path}: holds {len(listed)} files, more than the {MAX_FILES} allowed; do not use it")
    problem = names_problem([entry.orig_filename for entry in listed])
    if problem:
        raise BundleError(f"{path}: {problem}; do not use this bundle")
    for entry in listed:
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise BundleError(f"{path}: {entry.filename!r} is a link or no plain file; do not use this bundle")
        if entry.flag_bits & ENCRYPTED:
            raise BundleError(f"{path}: {entry.filename!r} is encrypted; a bundle is not")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise BundleError(
                f"{path}: {entry.filename!r} is compressed ({entry.compress_size} bytes for {entry.file_size}); "
                "a bundle stores its files as they are"
            )
        if entry.comment or entry.flag_bits & SIZES_BEHIND:
            raise BundleError(f"{path}: {entry.filename!r} was not written by edgeft (a comment, or sizes behind it)")
    return {entry.filename: entry for entry in listed}


def _check_no_gap(path: Path, file: BinaryIO, entries: list[zipfile.ZipInfo], directory: int) -> None:
    """The entries lie one behind the other from byte 0 to the `directory`, neither over each other nor apart."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset != end:
            where = "lies over another file" if entry.header_offset < end else "follows bytes of no file"
            raise BundleError(f"{path}: {entry.filename!r} {where}; do not use this bundle")
        file.seek(end)
        header = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        name_bytes, extra_bytes = header[-2:]
        end += LOCAL_HEADER.size + name_bytes + extra_bytes + entry.file_size
    if end != directory:
        raise BundleError(f"{path}: its files end at byte {end}, its directory starts at {directory}; fetch it again")


@contextmanager
def _as_bundle_error(path: Path) -> Iterator[None]:
    """What zipfile makes of a broken file becomes a BundleError."""
    try:
        yield
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeError, struct.error) as error:
        raise BundleError(f"{path}: the zip file is damaged ({error}); fetch it again") from None
