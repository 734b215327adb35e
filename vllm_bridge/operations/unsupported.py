"""The operations that a vLLM server does not have: callable, and each raises."""

from abc import ABCMeta  # so that subclasses may be abstract
from typing import Any, Callable, Iterable, List

from ..errors import UnsupportedOperationError

__all__ = ["Unsupported", "unsupported"]


def unsupported(operation: str, instead: str = "") -> Callable[..., Any]:
    """Return a method for an operation that the server does not have; it never touches the network."""

    def refuse(self: Any, /, *args: Any, **wire: Any) -> Any:
        raise UnsupportedOperationError("%s is not supported by %s provider%s" % (operation, self.name, instead))

    refuse.__name__ = operation
    refuse.__doc__ = _DOC
    return refuse


_DOC = "Raise `UnsupportedOperationError`."


def _offered(cls: Any, names: Iterable[str]) -> List[str]:
    return [name for name in names if getattr(getattr(cls, name, None), "__doc__", "") != _DOC]


class _Offering(ABCMeta):
    """A class whose ``dir()`` leaves out what only raises; completion looks there, too."""

    def __dir__(cls) -> List[str]:
        return _offered(cls, super().__dir__())


class Unsupported(metaclass=_Offering):
    """What only raises. ``dir()`` of a provider leaves it out, so that completion offers what works."""

    def __dir__(self) -> List[str]:
        return _offered(type(self), super().__dir__())

    speech_stream = unsupported("speech_stream")
    image_generation_stream = unsupported("image_generation_stream")
    image_edit = unsupported("image_edit")
    image_edit_stream = unsupported("image_edit_stream")
    image_variation = unsupported("image_variation")
    video_generation = unsupported("video_generation")
    video_retrieve = unsupported("video_retrieve")
    video_download = unsupported("video_download")
    video_delete = unsupported("video_delete")
    video_list = unsupported("video_list")
    video_remix = unsupported("video_remix")
    ocr = unsupported("ocr")
    file_upload = unsupported("file_upload")
    file_list = unsupported("file_list")
    file_retrieve = unsupported("file_retrieve")
    file_delete = unsupported("file_delete")
    file_content = unsupported("file_content")
    batch_create = unsupported("batch_create")
    batch_list = unsupported("batch_list")
    batch_retrieve = unsupported("batch_retrieve")
    batch_cancel = unsupported("batch_cancel")
    batch_delete = unsupported("batch_delete")
    batch_results = unsupported("batch_results")
    container_create = unsupported("container_create")
    container_list = unsupported("container_list")
    container_retrieve = unsupported("container_retrieve")
    container_delete = unsupported("container_delete")
    container_file_create = unsupported("container_file_create")
    container_file_list = unsupported("container_file_list")
    container_file_retrieve = unsupported("container_file_retrieve")
    container_file_content = unsupported("container_file_content")
    container_file_delete = unsupported("container_file_delete")
    compaction = unsupported("compaction")
    passthrough = unsupported("passthrough", "; write vllm.request(method, path, json=...)")
    passthrough_stream = unsupported("passthrough_stream", "; write vllm.stream_request(method, path, json=...)")
