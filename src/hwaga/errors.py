"""Everything that Hwaga refuses, as one tree of exceptions.

Each message says what is wrong and what to do about it, so that a command line, a server or a notebook can show it as it
is. The command line ends with exit code 2 on any of them.

    HwagaError
    ├── RequestError              the request cannot be honoured as it stands
    │   ├── PromptError           empty prompt, or a slot that does not exist
    │   │   └── PromptTooLongError    more tokens than the model takes
    │   ├── StyleError            no such style, industry or use, or a style whose LoRA is not there
    │   ├── LoraError             no such LoRA, or one that is damaged or for another model
    │   ├── SizeError             width, height or aspect
    │   ├── SourceImageError      the picture to start from cannot be read
    │   └── DoesNotFitError       more memory than there is, whatever is moved out of the way
    ├── ModelError                the model cannot be found or opened
    │   ├── UnknownModelError     no card and no folder of that name
    │   ├── CardError             a model card that is not valid
    │   └── CheckpointError       weights missing, damaged or of another shape
    ├── DownloadError             a model cannot be fetched, or what was fetched cannot be kept
    │   ├── HubError              the hub cannot be reached, or does not give the files out
    │   ├── DamagedFileError      a file is not the one that the hub announced
    │   └── DiskSpaceError        the disk is too small
    ├── DeviceError               a device or number format that this machine does not have
    ├── PackError                 a prompt pack that is not valid
    ├── DeviceMemoryError         the device ran out of memory
    ├── SettingsError             a configuration file or environment variable that is not valid
    ├── ImageFileError            a picture that cannot be written, or that carries no Hwaga settings
    └── ServerError               the server cannot do what it was asked
        ├── UnknownJobError       no job, picture or API key of that id
        ├── QueueFullError        as many jobs wait as may wait
        ├── ServerStoppingError   the server is being stopped and takes no more work
        ├── IdempotencyConflictError  the key already stands for another request
        ├── StaleAttemptError     the job has been taken from whoever reports on it
        ├── StoreError            the database of jobs cannot be used
        │   └── StoreFullError    no space for another job or picture
        ├── WireError             server and worker do not understand each other
        └── WorkerError           the worker process cannot start
"""

from __future__ import annotations


class HwagaError(Exception):
    """Base of every error that Hwaga raises on purpose."""


class RequestError(HwagaError, ValueError):
    """The request cannot be honoured as it stands."""


class PromptError(RequestError):
    """The prompt is empty or not text, or its slots are not those that exist."""


class PromptTooLongError(PromptError):
    """The prompt has more tokens than the limit.

    Attributes:
        tokens: tokens the prompt has, chat template included.
        limit: tokens allowed for this request.
        kept: the part of the prompt that would fit; the cut falls at its end.
    """

    def __init__(self, message: str, *, tokens: int, limit: int, kept: str) -> None:
        super().__init__(message)
        self.tokens = tokens
        self.limit = limit
        self.kept = kept


class StyleError(RequestError):
    """No style, industry or use has that name, or the style's LoRA is not there."""


class LoraError(RequestError):
    """No LoRA has that name, or its file is damaged, of an unknown kind or for another model."""


class SizeError(RequestError):
    """Width, height or aspect is not one that the model takes."""


class SourceImageError(RequestError):
    """The picture to start from is missing, damaged, too large or no picture."""


class DoesNotFitError(RequestError):
    """The pictures need more memory than there is, whatever is moved out of the way.

    Attributes:
        needed: bytes of the device that they would fit in.
    """

    def __init__(self, message: str, *, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


class ModelError(HwagaError):
    """The model cannot be found or opened."""


class UnknownModelError(ModelError):
    """No card and no folder has that name."""


class CardError(ModelError):
    """A model card is not valid."""


class CheckpointError(ModelError):
    """Weights are missing, damaged, or not those of the network that the configuration describes."""


class DownloadError(HwagaError):
    """A model cannot be fetched, or what was fetched cannot be kept."""


class HubError(DownloadError):
    """The hub cannot be reached, or does not give the files out."""


class DamagedFileError(DownloadError):
    """A file is not the one that the hub announced."""


class DiskSpaceError(DownloadError):
    """The disk is too small for what is to be fetched."""


class DeviceError(HwagaError):
    """A device or number format that this machine does not have."""


class PackError(HwagaError):
    """A pack of styles or industries is not valid."""


class DeviceMemoryError(HwagaError):
    """The device ran out of memory. What the work held is free again."""


class SettingsError(HwagaError):
    """A configuration file or environment variable is not valid."""


class ImageFileError(HwagaError):
    """A picture cannot be written, or carries no settings of ours."""


class ServerError(HwagaError):
    """The server cannot do what it was asked."""


class UnknownJobError(ServerError, LookupError):
    """No job, picture or API key has that id. It may have been removed since."""


class QueueFullError(ServerError):
    """As many jobs wait as may wait."""


class ServerStoppingError(ServerError):
    """The server is being stopped and takes no more work. What waits is kept for its next start."""


class IdempotencyConflictError(ServerError):
    """The idempotency key already stands for another request of the same owner."""


class StaleAttemptError(ServerError):
    """The job is no longer this attempt's: it has ended, or was given to another worker. What was reported is not kept."""


class StoreError(ServerError):
    """The database of jobs cannot be opened, read or written."""


class StoreFullError(StoreError):
    """There is no space for another job or picture. What was there before is unharmed."""


class WireError(ServerError):
    """What server and worker sent each other is malformed or too large."""


class WorkerError(ServerError):
    """The worker process cannot start."""
