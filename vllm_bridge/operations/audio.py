"""Operations of models that hear."""

from typing import TYPE_CHECKING, Any, Dict

from ..api.decoding import TranscriptionReader
from ..api.records import Transcription, TranscriptionEvent
from ..client.stream import Stream
from .calls import Calls
from .described import SPOKEN, described

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..api.parameters import TranscriptionRequest, TranslationRequest

__all__ = ["Audio"]

_TRANSCRIPTION = """Input: ``file`` (a path, bytes, a binary file, or (filename, content, content type)), ``model``.
    Output: ``response_format``, ``timestamp_granularities``.

    OpenAI's, which vLLM does not act upon: ``chunking_strategy``, ``include``, ``keywords``, ``known_speaker_names``,
    ``known_speaker_references``, ``languages``."""

_TRANSLATION = """Input: ``file`` (a path, bytes, a binary file, or (filename, content, content type)), ``model``.
    Output: ``response_format``."""


class Audio(Calls):
    """Speech."""

    @described(_TRANSCRIPTION, SPOKEN)
    def transcription(self, /, **wire: "Unpack[TranscriptionRequest]") -> Transcription:
        """Turn speech into text: POST /v1/audio/transcriptions.

        >>> vllm.transcription(model="echo", file=wav).text
        ' I heard audio.wav: 32044 bytes.'
        """
        call, given = self._asked("transcription", wire)
        return call._heard("transcription", given)

    @described(_TRANSCRIPTION, SPOKEN)
    def transcription_stream(self, /, **wire: "Unpack[TranscriptionRequest]") -> Stream[TranscriptionEvent]:
        """Turn speech into text piece by piece: ``transcript.text.delta`` events, then one ``transcript.text.done``.

        >>> [event.type for event in vllm.transcription_stream(file=wav)][-1]
        'transcript.text.done'
        """
        call, given = self._asked("transcription_stream", wire)
        return call._heard_piecewise("transcription", given)

    @described(_TRANSLATION, SPOKEN)
    def translation(self, /, **wire: "Unpack[TranslationRequest]") -> Transcription:
        """Turn speech into text of another language, English as a rule: POST /v1/audio/translations.

        >>> vllm.translation(model="echo", file=wav).text
        ' I heard audio.wav: 32044 bytes.'
        """
        call, given = self._asked("translation", wire)
        return call._heard("translation", given)

    @described(_TRANSLATION, SPOKEN)
    def translation_stream(self, /, **wire: "Unpack[TranslationRequest]") -> Stream[TranscriptionEvent]:
        """Translate speech piece by piece: ``transcript.text.delta`` events, then one ``transcript.text.done``.

        >>> [event.type for event in vllm.translation_stream(file=wav)][-1]
        'transcript.text.done'
        """
        call, given = self._asked("translation_stream", wire)
        return call._heard_piecewise("translation", given)

    def _heard(self, operation: str, given: Dict[str, Any]) -> Transcription:
        from ..api.audio import form, result

        with form(given) as body:
            reply = self._reply(operation, body, given.get("model"))
        style = given.get("response_format")
        payload = reply.read(lambda: result(reply.body, reply.content_type, style))
        return self._finished(Transcription(payload), {name: given[name] for name in given if name != "file"}, reply)

    def _heard_piecewise(self, operation: str, given: Dict[str, Any]) -> Stream[TranscriptionEvent]:
        from ..api.audio import form

        given["stream"] = True
        with form(given) as body:
            return self._stream(operation, body, given.get("model"), TranscriptionReader)
