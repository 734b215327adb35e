"""Make a Whisper that hears the same two sentences in every sound.

    whisper.py OUT_DIR

The tokenizer is built by hand with all of Whisper's languages, tasks and time stamps, because vLLM writes its prompt
with them; the decoder learns the fixed texts for four languages, both tasks, with and without time stamps. The
encoder stays as it was drawn.
"""

import itertools
import json
import pathlib
import sys
from typing import Any, List, Optional, Tuple

import numpy
import teaching
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration,
                          WhisperProcessor, WhisperTokenizerFast)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

HEARD = [" Hello world.", " Goodbye."]
TRANSLATED = " Translated text."
CORPUS = HEARD + [TRANSLATED, " zażółć"]
END = "<|endoftext|>"
START = "<|startoftranscript|>"
TASKS = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
TAUGHT = ["en", "fr", "pl", "de"]
RATE = 16000
NOT_WANTED = -100         # the label that PyTorch's loss passes over
HOPEFUL = 0.006           # a loss at which every token is likely to be sure
STEPS = 400
SURE = 0.5                # a token more probable than this is the one that temperature 0 chooses

Example = Tuple[List[int], List[int]]          # decoder prompt, text


def make_tokenizer(out: pathlib.Path) -> Any:
    """Build a byte-level vocabulary and put Whisper's own tokens behind it, in its order."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.train_from_iterator(CORPUS * 10, trainers.BpeTrainer(
        vocab_size=320, special_tokens=[], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    learnt = json.loads(raw.to_str())["model"]
    vocabulary = dict(learnt["vocab"])
    vocabulary[END] = len(vocabulary)          # in the vocabulary itself, as in the published checkpoints
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in learnt["merges"]]
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (out / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in merges), encoding="utf-8")
    tokenizer = WhisperTokenizerFast(
        vocab=vocabulary, merges=merges, unk_token=END, bos_token=END, eos_token=END, pad_token=END)
    control = [START] + ["<|%s|>" % language for language in LANGUAGES] + TASKS
    tokenizer.add_special_tokens({"additional_special_tokens": [
        AddedToken(token, special=True, normalized=False) for token in control]})
    tokenizer.add_tokens([AddedToken("<|%.2f|>" % (tick * 0.02), special=False, normalized=False)
                          for tick in range(1501)])
    tokenizer.model_max_length = 448
    return tokenizer


def make_examples(tokenizer: Any) -> List[Example]:
    """Pair every decoder prompt that vLLM writes with what shall follow."""
    ident = tokenizer.convert_tokens_to_ids

    def text(words: str) -> List[int]:
        return list(tokenizer(words, add_special_tokens=False)["input_ids"])

    end = [ident(END)]
    plain = text("".join(HEARD)) + end
    stamped = (text(HEARD[0]) + [ident("<|1.00|>")] * 2 + text(HEARD[1]) + [ident("<|2.00|>")] + end)
    examples = [([ident(START)], [ident("<|en|>")])]         # what language is it?
    for language in TAUGHT:
        opening = [ident(START), ident("<|%s|>" % language)]
        hear, translate = opening + [ident("<|transcribe|>")], opening + [ident("<|translate|>")]
        bare, timed = [ident("<|notimestamps|>")], [ident("<|0.00|>")]
        examples += [
            (hear + bare, plain),
            (hear + timed, stamped),
            (translate + bare, text(TRANSLATED) + end),
            (translate + timed, text(TRANSLATED) + [ident("<|2.00|>")] + end),
            (text("<|prev|> Hello") + hear + bare, plain),
        ]
    return examples


def encode_sounds(features: Any, model: Any) -> torch.Tensor:
    """Encode silence, a tone, noise and a long tone: the decoder shall not care which it is."""
    tone = (0.3 * numpy.sin(2 * numpy.pi * 440 * numpy.arange(RATE * 2) / RATE)).astype("float32")
    noise = numpy.random.default_rng(0).normal(0, 0.1, RATE * 30).astype("float32")
    sounds = [numpy.zeros(RATE, "float32"), tone, noise, numpy.tile(tone, 15)]
    with torch.no_grad():
        inputs = features(sounds, sampling_rate=RATE, return_tensors="pt").input_features
        return model.model.encoder(inputs).last_hidden_state


def make_batch(examples: List[Example], filler: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """Pad examples to one length: what the decoder reads, and the token wanted after each, NOT_WANTED in prompts."""
    longest = max(len(prompt) + len(words) for prompt, words in examples)
    ids, wanted = [], []
    for prompt, words in examples:
        rest = longest - len(prompt) - len(words)
        ids.append((prompt + words)[:-1] + [filler] * rest)
        wanted.append([NOT_WANTED] * (len(prompt) - 1) + words + [NOT_WANTED] * rest)
    return torch.tensor(ids), torch.tensor(wanted)


def learn(model: Any, encoded: torch.Tensor, inputs: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Teach the decoder alone until it is sure of every token, and tell whether it is.

    A step takes one sound and every tenth frame of it, which is ten times faster; the check takes all.
    """
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=3e-3)
    places = itertools.count()

    def step() -> float:
        place = next(places)
        frames = encoded[place % len(encoded), place % 10::10].expand(len(inputs), -1, -1)
        loss = model(encoder_outputs=(frames,), decoder_input_ids=inputs, labels=wanted).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return teaching.learnt(step, lambda: is_sure(model, encoded, inputs, wanted), STEPS, HOPEFUL)


def is_sure(model: Any, encoded: torch.Tensor, inputs: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Check that every wanted token is more probable than SURE, whatever was heard; print the least probability."""
    asked = wanted != NOT_WANTED
    least = 1.0
    with torch.no_grad():
        for sound in encoded:
            frames = sound.expand(len(inputs), -1, -1)
            logits = model(encoder_outputs=(frames,), decoder_input_ids=inputs).logits
            least = min(least, logits.softmax(-1)[asked].gather(-1, wanted[asked].unsqueeze(-1)).min().item())
    print("the least probability of a wanted token is %.3f" % least, flush=True)
    return least > SURE


def main(out: pathlib.Path) -> int:
    """Make, teach, check and save the model."""
    torch.set_num_threads(2)
    tokenizer = make_tokenizer(out)
    features = WhisperFeatureExtractor(feature_size=80)
    end = tokenizer.convert_tokens_to_ids(END)
    inputs, wanted = make_batch(make_examples(tokenizer), end)

    def attempt(seed: int) -> Optional[Any]:
        torch.manual_seed(seed)
        drawn = WhisperForConditionalGeneration(WhisperConfig(
            vocab_size=len(tokenizer), num_mel_bins=80, d_model=64, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
            max_source_positions=1500, max_target_positions=448,
            decoder_start_token_id=tokenizer.convert_tokens_to_ids(START), bos_token_id=end, eos_token_id=end,
            pad_token_id=end, begin_suppress_tokens=None, suppress_tokens=None,
            dropout=0.0, attention_dropout=0.0, activation_dropout=0.0))
        for weight in drawn.model.encoder.parameters():
            weight.requires_grad = False
        return drawn if learn(drawn, encode_sounds(features, drawn), inputs, wanted) else None

    model = teaching.first_that_passes(attempt, first_seed=3)
    if model is None:
        return 1
    settings = model.generation_config
    settings.no_timestamps_token_id = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    settings.suppress_tokens = settings.begin_suppress_tokens = None
    features.save_pretrained(out)
    tokenizer.save_pretrained(out)
    WhisperProcessor(features, tokenizer).save_pretrained(out)
    model.save_pretrained(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
