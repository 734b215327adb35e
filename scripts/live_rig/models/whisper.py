"""Make a Whisper that hears the same two sentences in every sound.

    whisper.py OUT_DIR

The tokenizer is built by hand with all of Whisper's languages, tasks and time stamps, because vLLM writes its prompt
with them; the decoder learns the fixed texts for four languages, both tasks, with and without time stamps. The
encoder stays as it was drawn.
"""

import json
import pathlib
import sys
import time
from typing import Any, List, Tuple

import numpy
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
ENOUGH = 0.006
STEPS = 400

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


def hearings(features: Any, model: Any) -> torch.Tensor:
    """Encode silence, a tone, noise and a long tone: the decoder shall not care which it is."""
    tone = (0.3 * numpy.sin(2 * numpy.pi * 440 * numpy.arange(RATE * 2) / RATE)).astype("float32")
    noise = numpy.random.default_rng(0).normal(0, 0.1, RATE * 30).astype("float32")
    sounds = [numpy.zeros(RATE, "float32"), tone, noise, numpy.tile(tone, 15)]
    with torch.no_grad():
        inputs = features(sounds, sampling_rate=RATE, return_tensors="pt").input_features
        return model.model.encoder(inputs).last_hidden_state


def learn(model: Any, heard: torch.Tensor, examples: List[Example], filler: int) -> float:
    """Teach the decoder alone, on every tenth frame of what was encoded; give the last loss."""
    longest = max(len(prompt) + len(words) for prompt, words in examples)
    ids, labels = [], []
    for prompt, words in examples:
        rest = longest - len(prompt) - len(words)
        ids.append((prompt + words)[:-1] + [filler] * rest)
        labels.append([-100] * (len(prompt) - 1) + words + [-100] * rest)
    inputs, wanted = torch.tensor(ids), torch.tensor(labels)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=3e-3)
    began, value = time.time(), 1.0
    for step in range(STEPS):
        frames = heard[step % len(heard), step % 10::10].expand(len(ids), -1, -1)
        loss = model(encoder_outputs=(frames,), decoder_input_ids=inputs, labels=wanted).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
        if step % 40 == 0:
            print("step %d loss %.4f after %.0f s" % (step, value, time.time() - began), flush=True)
        if value < ENOUGH and step > 40:
            break
    return value


def main(out: pathlib.Path) -> int:
    """Make, teach and save the model."""
    torch.manual_seed(3)
    torch.set_num_threads(2)
    tokenizer = make_tokenizer(out)
    features = WhisperFeatureExtractor(feature_size=80)
    end = tokenizer.convert_tokens_to_ids(END)
    model = WhisperForConditionalGeneration(WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=80, d_model=64, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
        max_source_positions=1500, max_target_positions=448,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids(START), bos_token_id=end, eos_token_id=end,
        pad_token_id=end, begin_suppress_tokens=None, suppress_tokens=None,
        dropout=0.0, attention_dropout=0.0, activation_dropout=0.0))
    for weight in model.model.encoder.parameters():
        weight.requires_grad = False
    loss = learn(model, hearings(features, model), make_examples(tokenizer), end)
    print("loss %.4f" % loss)
    if loss > 10 * ENOUGH:
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
