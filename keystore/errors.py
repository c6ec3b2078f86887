"""Every error that keystore raises on purpose.

Each class has a stable ``code`` (scripts and HTTP clients match on it), and each instance says
*what* happened and *where* in its message and *what to do* in its ``hint``. The command line
catches :class:`KeystoreError` once; the sidecar maps it once.
"""

from typing import ClassVar


class KeystoreError(Exception):
    """Root of all keystore errors.

    ``code`` is stable across releases; ``hint`` is one sentence that tells the reader what to do.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


def in_words(error: Exception) -> str:
    """Say what an error is about. Of those that are not ours nobody knows what is in them."""
    return str(error) if isinstance(error, KeystoreError) else f"{type(error).__name__}."


# -- the file ----------------------------------------------------------------------------------


class StoreNotFoundError(KeystoreError):
    """There is no file at the path given."""

    code = "store_not_found"


class StoreExistsError(KeystoreError):
    """A store (or another file) is already where a new one was to be made."""

    code = "store_exists"


class NotAKeystoreError(KeystoreError):
    """The file is not a keystore: no SQLite file, or one of another application."""

    code = "not_a_keystore"


class SchemaVersionError(KeystoreError):
    """The file's schema is newer than this program, or waits for ``keystore migrate``."""

    code = "schema_version"


class StoreBusyError(KeystoreError):
    """Another process held the write lock for longer than the busy timeout."""

    code = "store_busy"


class ListenError(KeystoreError):
    """The address or the socket is taken, or may not be used."""

    code = "cannot_listen"


class ForkedError(KeystoreError):
    """The file was open when this process was forked; SQLite does not survive that."""

    code = "forked"


class DamagedStoreError(KeystoreError):
    """SQLite reports a malformed file or a failing disk."""

    code = "damaged_store"


class DiskFullError(KeystoreError):
    """There is no room for what was to be written; nothing was."""

    code = "disk_full"


class ConstraintError(KeystoreError):
    """A row would break a rule of the schema (UNIQUE, CHECK, a trigger); nothing was written."""

    code = "constraint"


class CompactedLogError(KeystoreError):
    """The ChangeLog no longer tells what a push under way, or an export, still had to read."""

    code = "compacted_log"


# -- rows --------------------------------------------------------------------------------------


class NotFoundError(KeystoreError):
    """A plan, account or key that was named does not exist."""

    code = "not_found"


class AlreadyExistsError(KeystoreError):
    """The external identity (plan name, e-mail, token hash) is taken."""

    code = "already_exists"


class InUseError(KeystoreError):
    """Something else needs the record that was to be removed."""

    code = "in_use"


class ConflictingRequestError(KeystoreError):
    """A request id was used before, for something else."""

    code = "conflicting_request"


class InsufficientCreditsError(KeystoreError):
    """An account has fewer credits than something costs."""

    code = "insufficient_credits"


class InvalidInputError(KeystoreError):
    """A value from outside does not have the required form."""

    code = "invalid_input"


class WrongRoleError(KeystoreError):
    """The operation belongs to a store of the other role (origin or replica)."""

    code = "wrong_role"


# -- sync --------------------------------------------------------------------------------------


class TargetError(KeystoreError):
    """Root of what a sync target can answer; the store is as it was before."""

    code = "target"


class UnsupportedTargetError(TargetError):
    """The URL's scheme is unknown, or the extra that serves it is not installed."""

    code = "unsupported_target"


class TargetUnavailableError(TargetError):
    """The target cannot be reached or stopped answering; trying again later is safe."""

    code = "target_unavailable"


class TargetNotReadyError(TargetError):
    """The target answers but was not prepared (``keystore hub init``, ``keystore repo create``)."""

    code = "target_not_ready"


class UntrustedRepositoryError(TargetError):
    """Files that are unsigned, signed by others, tampered with, rolled back or cut short."""

    code = "untrusted_repository"


class AlteredFileError(UntrustedRepositoryError):
    """A file has the signed length, and other bytes than were signed."""

    code = "altered_file"


class TruncatedFileError(UntrustedRepositoryError):
    """A file is shorter than was signed."""

    code = "truncated_file"


class OversizedFileError(UntrustedRepositoryError):
    """A file is longer than was signed, or metadata longer than any can be; the rest is unread."""

    code = "oversized_file"


class SwappedFileError(UntrustedRepositoryError):
    """A file is signed, but for another name."""

    code = "swapped_file"


class RolledBackRepositoryError(UntrustedRepositoryError):
    """The repository offers a state that is older than one this replica has seen."""

    code = "rolled_back_repository"


class MixedRepositoryError(UntrustedRepositoryError):
    """Metadata of different states of the repository are mixed."""

    code = "mixed_repository"


class ForeignRootError(UntrustedRepositoryError):
    """The repository is another one than the root file that this replica trusts belongs to."""

    code = "foreign_root"


class RevokedKeyError(UntrustedRepositoryError):
    """Metadata are signed with a key that the repository has replaced since."""

    code = "revoked_key"


class UnsafeNameError(UntrustedRepositoryError):
    """The signed metadata name a file as no keystore does."""

    code = "unsafe_name"


class DecompressionBombError(UntrustedRepositoryError):
    """A file unpacks to more than was signed, or asks for more memory than any of ours needs."""

    code = "decompression_bomb"


class DamagedTargetError(TargetError):
    """What a target holds of earlier pushes cannot be read; the next push carries everything."""

    code = "damaged_target"


class FencedPublisherError(TargetError):
    """Somebody else published while this publication was under way; nothing of it is visible."""

    code = "fenced_publisher"


class ExpiredRepositoryError(TargetError):
    """The repository's signatures are past their expiry: nobody has published since."""

    code = "expired_repository"


class ForkedStoreError(TargetError):
    """The target was last written by another copy of this store (restored backup, copied file)."""

    code = "forked_store"


class ForeignOriginError(TargetError):
    """The target carries another origin than the one that this replica mirrors."""

    code = "foreign_origin"


class StaleTargetError(TargetError):
    """The target holds an older state than this replica; applying it would go back in time."""

    code = "stale_target"


class IncompleteStateError(TargetError):
    """What the target sent does not add up to the state that it announced."""

    code = "incomplete_state"


# -- usage in signed files ---------------------------------------------------------------------


class UsageFileError(KeystoreError):
    """Root of why a usage file, or the enrolment of a key, is refused; nothing of it was taken."""

    code = "usage_file"


class UnreadableUsageFileError(UsageFileError):
    """There is no such file, it may not be read, or it is a link, a folder or a device."""

    code = "unreadable_usage_file"


class DamagedUsageFileError(UsageFileError):
    """A file that was cut short or altered, or that never was one of ours."""

    code = "damaged_usage_file"


class LargeUsageFileError(UsageFileError):
    """More bytes than a usage file has, packed or unpacked."""

    code = "large_usage_file"


class UnknownUsageKeyError(UsageFileError):
    """The key that signed is not enrolled at this origin."""

    code = "unknown_usage_key"


class RevokedUsageKeyError(UsageFileError):
    """The key that signed was revoked at this origin."""

    code = "revoked_usage_key"


class ForgedUsageFileError(UsageFileError):
    """The signature is not that of the key that it names."""

    code = "forged_usage_file"


class ForeignUsageFileError(UsageFileError):
    """A replica of another origin has signed it."""

    code = "foreign_usage_file"


class MisattributedUsageFileError(UsageFileError):
    """A replica's key has signed usage in another replica's name."""

    code = "misattributed_usage_file"


class RenamedUsageFileError(UsageFileError):
    """The name is not the one that was signed."""

    code = "renamed_usage_file"
