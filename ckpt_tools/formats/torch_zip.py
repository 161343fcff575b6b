"""torch.save since 1.6: a zip archive with ``data.pkl`` and one stored member a storage.

Layout: torch/serialization.py (``_save``), caffe2/serialize/inline_container.cc. The archive's root folder is
the file's stem at the time of saving; torch takes it from the first entry.
"""

from __future__ import annotations

from typing import Literal

from ckpt_tools.checkpoint import Anomaly, Checkpoint, Refusal, Storage
from ckpt_tools.dtypes import BY_STORAGE, UINT8
from ckpt_tools.errors import CkptError, CorruptFile, NotACheckpoint
from ckpt_tools.formats.archive import Archive, Member, MissingDirectory
from ckpt_tools.formats.base import Format
from ckpt_tools.formats.unpickled import describe, load_buffer, run_machine
from ckpt_tools.pickles.values import Global, brief
from ckpt_tools.sources import Source

MIN_VERSION, MAX_VERSION = 1, 10
"""The archive versions that torch opens (caffe2/serialize/versions.h)."""

# The oldest torch that writes each member, from the history of torch/serialization.py and inline_container.cc
_SINCE = (
    (".storage_alignment", "2.7"),
    (".format_version", "2.7"),
    (".data/serialization_id", "2.1"),
    ("byteorder", "2.1"),
)


def detect(source: Source, head: bytes) -> bool:
    """Whether it is a zip archive that torch.load would take for its own, or a zip cut short."""
    if not head.startswith(b"PK\x03\x04"):
        return False
    try:
        archive = Archive.of(source)
    except MissingDirectory:
        return True
    return root_of(archive) is not None


def root_of(archive: Archive) -> str | None:
    """The root folder, with its slash, if ``data.pkl`` stands in it; torch takes the first entry's."""
    if not archive.members:
        return None
    root, slash, _ = archive.members[0].name.partition("/")
    if not slash or archive.find(f"{root}/data.pkl") is None:
        return None
    return root + "/"


class Members:
    """The members under the root folder, and the storages among them."""

    def __init__(self, archive: Archive, root: str) -> None:
        self.archive = archive
        self.root = root
        self._storages: dict[object, Storage] = {}
        self.byteorder: Literal["little", "big"] = "little"  # what files without the member are
        member = archive.find(root + "byteorder")
        if member is not None:
            text = archive.open(member).read(0, min(member.size, 16))
            if text not in (b"little", b"big"):
                raise CorruptFile(
                    f"the byte order {text!r} is neither little nor big",
                    path=archive.source.name,
                    member=member.name,
                )
            self.byteorder = "big" if text == b"big" else "little"

    def text(self, name: str) -> str | None:
        """A short member's content, stripped; None where there is none."""
        member = self.archive.find(self.root + name)
        if member is None:
            return None
        return self.archive.open(member).read(0, min(member.size, 256)).decode("utf-8", "replace").strip()

    def storage(self, pid: object, folder: str = "data/") -> Storage:
        """The storage that ``('storage', class, key, location, numel)`` refers to; one a key."""
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise CorruptFile(f"a persistent id is no reference to a storage: {brief(pid)}")
        _, cls, key, location, numel = pid
        if type(key) is not str or type(numel) is not int or type(cls) is not Global or not 0 <= numel < 1 << 63:
            raise CorruptFile(f"a storage is referred to by a malformed persistent id: {brief(pid)}")
        known = self._storages.get(key)
        if known is not None:
            return known
        dtype = BY_STORAGE.get(cls.name)
        if dtype is None and cls.name not in ("UntypedStorage", "_UntypedStorage"):
            raise CorruptFile(f"{cls.path} is no storage class")
        nbytes = numel * (dtype or UINT8).itemsize  # untyped ones count bytes
        member = self.archive.find(f"{self.root}{folder}{key}")
        if member is None:
            raise CorruptFile(f"storage {key!r} of {nbytes:,} bytes has no member {folder}{key}")
        if member.size < nbytes:
            raise CorruptFile(
                f"storage {key!r} takes {nbytes:,} bytes, but the member {member.name} has {member.size:,}"
            )
        device = location if type(location) is str else brief(location)
        made = self._storages[key] = Storage(self.archive.open(member), 0, nbytes, dtype, device, key, self.byteorder)
        return made


def read(source: Source) -> Checkpoint:
    """Describe a torch zip; only the central directory, ``data.pkl`` and a few short members are read."""
    try:
        archive = Archive.of(source)
    except MissingDirectory:
        from ckpt_tools.formats import salvage  # rarely needed

        raise salvage.explain(source) from None
    root = root_of(archive)
    pickle = archive.find(f"{root}data.pkl") if root else None
    if root is None or pickle is None:
        raise NotACheckpoint("the zip archive holds no data.pkl", path=source.name)
    try:
        return _read(source, archive, root, pickle)
    except CkptError as error:
        raise error.at(path=source.name, member=pickle.name) from None


def _read(source: Source, archive: Archive, root: str, pickle: Member) -> Checkpoint:
    members = Members(archive, root)
    stream = archive.open(pickle)
    evaluation = run_machine(load_buffer(stream), 0, path=source.name, member=pickle.name)
    anomalies: list[Anomaly] = []
    if evaluation.end != pickle.size:
        anomalies.append(Anomaly(f"{pickle.size - evaluation.end:,} bytes follow the end of the pickle", pickle.name))
    for names in archive.duplicates:
        chosen = archive.find(names[0])
        anomalies.append(
            Anomaly(
                f"{len(names)} members answer to the same name; torch opens the one at byte "
                f"{chosen.header_offset if chosen else 0:,}",
                " = ".join(dict.fromkeys(names)),
            )
        )
    producer = {"root folder": root.rstrip("/")}
    version = members.text("version") or members.text(".data/version")
    if version:
        producer["archive version"] = version
    refused: list[Refusal] = []
    outside = sum(not member.name.startswith(root) for member in archive.members)
    if outside:
        what = (
            f"{outside:,} of {len(archive.members):,} members stand outside of {brief(root)}, so that torch refuses it"
        )
        anomalies.append(Anomaly(what))
        refused.append(Refusal("zip archive", what, is_global=False))
    if version is None or not version.isdecimal() or not MIN_VERSION <= int(version[:9]) <= MAX_VERSION:
        what = f"the archive's version is {brief(version)}, where torch wants {MIN_VERSION} to {MAX_VERSION}"
        anomalies.append(Anomaly(what))
        refused.append(Refusal("zip archive", what, is_global=False))
    since = next((v for name, v in _SINCE if archive.find(root + name) is not None), None)
    if since:
        producer["torch"] = f"{since} or later (inferred from the archive's members)"
    return describe(
        evaluation,
        members.storage,
        source=source,
        stream=stream,
        member=pickle.name,
        format="torch_zip",
        title="PyTorch zip archive (torch.save)",
        producer=producer,
        anomalies=anomalies,
        refused=refused,
    )


FORMAT = Format("torch_zip", "PyTorch zip archive (torch.save)", read, detect)
