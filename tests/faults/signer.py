"""A fleet that really signs, as the simulator of tests/edgeml/trust does, and that also has bundles to give away."""

import copy
import hashlib
import time

from tuf.api.metadata import Metadata

from edgeml.bundle import Bundle
from edgeml.ids import DeploymentId, digest_of
from edgeml.trustfacts import SignedDelta, SignedFacts
from edgeml.twin import Desired, Policy

from ..edgeml.trust.conftest import Fleet

CHUNK_BYTES = 64 << 10
ROLES = ("root", "targets", "snapshot", "timestamp")


class Signer(Fleet):
    """Signs metadata, and keeps the blobs that they speak of."""

    def __init__(self):
        super().__init__(time.time_ns() // 1_000_000)
        self.blobs = {}
        self.chunk_bytes = CHUNK_BYTES

    def release(self, bundle, counter=1, **changes):
        """Sign a bundle (bytes) and publish it; return what a fleet would want of a device."""
        return self.releases([(bundle, counter)], **changes)[0]

    def releases(self, bundles, deltas=(), **changes):
        """Sign several at once."""
        wanted = []
        for bundle, counter in bundles:
            chunks = b"".join(
                hashlib.sha256(bundle[at : at + self.chunk_bytes]).digest()
                for at in range(0, len(bundle), self.chunk_bytes)
            )
            about = self.about(bundle)
            path = f"{about.model}/{about.version}/{about.variant}.edgeml"
            facts = {
                "release": about.release, "variant": about.variant, "release_counter": counter,
                "profiles": about.profiles, "runtime": about.runtime, "chunk_bytes": self.chunk_bytes,
                "chunks_sha256": digest_of(chunks), "deltas": tuple(deltas),
            }  # fmt: skip
            self.put(path, bundle, SignedFacts(**(facts | changes)))
            self.blobs |= {digest_of(bundle): bundle, digest_of(chunks): chunks}
            wanted.append(
                Desired(
                    generation=counter,
                    deployment=DeploymentId(f"d{counter}"),
                    release=about.release,
                    target=path,
                    digest=digest_of(bundle),
                    policy=Policy(attempts_max=3),
                )
            )
        self.publish()
        return wanted

    def delta(self, base, packed):
        """Keep a delta's bytes; return what is to be signed of it."""
        self.blobs[digest_of(packed)] = packed
        return SignedDelta(digest_of(base), digest_of(packed), len(packed))

    def about(self, bundle):
        """What a bundle's manifest says."""
        from pathlib import Path
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            path = Path(folder) / "it.edgeml"
            path.write_bytes(bundle)
            with Bundle(path) as opened:
                return opened.manifest

    def content(self, folder, name):
        """What a server gives under this name; None if it has no such file."""
        return (self.files if folder == "metadata" else self.blobs).get(name)

    def write(self, directory):
        """Write everything down as a repository in a directory, which is returned."""
        for folder, files in (("metadata", self.files), ("blobs/sha256", self.blobs)):
            (directory / folder).mkdir(parents=True)
            for name, content in files.items():
                (directory / folder / name).write_bytes(content)
        return directory

    def at(self, role):
        """Name of a role's newest metadata file."""
        versions = {"root": self.root, "targets": self.targets, "snapshot": self.snapshot}
        return f"{versions[role].version}.{role}.json" if role in versions else f"{role}.json"

    def frozen(self):
        """The files as they are now, for a mirror that goes on giving them."""
        return dict(self.files)

    def copy(self):
        """Another signer with the same keys and the same past."""
        return copy.deepcopy(self)

    def resigned(self, name, signers):
        """A metadata file with other signatures, and nothing else changed."""
        metadata = Metadata.from_bytes(self.files[name])
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()
