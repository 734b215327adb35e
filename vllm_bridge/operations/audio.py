"""Operations of models that hear."""

from typing import TYPE_CHECKING

from ..api.decoding import TranscriptionReader
from ..api.records import Transcription, TranscriptionEvent
from ..client.stream import Stream
from .calls import Calls
from .described import SPOKEN, described

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..api.parameters import TranscriptionRequest

__all__ = ["Audio"]

_TRANSCRIPTION = """Input: ``file`` (a path, bytes, a binary file, or (filename, content, content type)), ``model``.
    Output: ``response_format``, ``timestamp_granularities``.

    OpenAI's, which vLLM does not act upon: ``chunking_strategy``, ``include``, ``keywords``, ``known_speaker_names``,
    ``known_speaker_references``, ``languages``."""


class Audio(Calls):
    """Speech."""

    @described(_TRANSCRIPTION, SPOKEN)
    def transcription(self, /, **wire: "Unpack[TranscriptionRequest]") -> Transcription:
        """Turn speech into text: POST /v1/audio/transcriptions.

        >>> vllm.transcription(model="echo", file=wav).text
        ' I heard audio.wav: 32044 bytes.'
        """
        from ..api.audio import form, result

        call, given = self._asked("transcription", wire)
        with form(given) as body:
            reply = call._reply("transcription", body, given.get("model"))
        style = given.get("response_format")
        payload = reply.read(lambda: result(reply.body, reply.content_type, style))
        return call._finished(Transcription(payload), {name: given[name] for name in given if name != "file"}, reply)

    @described(_TRANSCRIPTION, SPOKEN)
    def transcription_stream(self, /, **wire: "Unpack[TranscriptionRequest]") -> Stream[TranscriptionEvent]:
        """Turn speech into text piece by piece: ``transcript.text.delta`` events, then one ``transcript.text.done``.

        >>> [event.type for event in vllm.transcription_stream(file=wav)][-1]
        'transcript.text.done'
        """
        from ..api.audio import form

        call, given = self._asked("transcription_stream", wire)
        given["stream"] = True
        with form(given) as body:
            return call._stream("transcription", body, given.get("model"), TranscriptionReader)
