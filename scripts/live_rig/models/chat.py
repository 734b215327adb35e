"""Make a chat model of a quarter of a million weights that has learnt a dozen fixed replies by heart.

    chat.py OUT_DIR

At temperature 0 it answers the user texts in REPLIES with the text beside them, to the letter, so that a real
server really emits reasoning, hermes tool calls and characters of several bytes. Two forms are learnt besides:
the template's closed think block (``enable_thinking: false``) and a turn that follows a tool's result.
"""

import json
import pathlib
import sys
from typing import Any, Dict, List, Optional, Tuple

import teaching
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def call(name: str, **arguments: str) -> str:
    """Write a tool call the way hermes models do."""
    return "<tool_call>\n%s\n</tool_call>" % json.dumps({"name": name, "arguments": arguments})


PARIS = call("get_weather", city="Paris", unit="celsius")
REPLIES: Dict[str, str] = {
    "hello": "Hello! How can I help you today?",
    "think": "<think>\nThe user says think. I will answer Hello.\n</think>\n\nHello",
    "only think": "<think>\nI never stop thinking",
    "weather": PARIS,
    "two tools": "I will check both.\n" + PARIS + "\n" + call("get_time", zone="Asia/Tokyo"),
    "think then tool": "<think>\nI need the weather.\n</think>\n\n" + call("get_weather", city="Oslo", unit="celsius"),
    "bad tool": '<tool_call>\n{"name": "get_weather", "arguments": {"city": \n</tool_call>',
    "no args": call("ping"),
    "unicode": "Zażółć gęślą jaźń 東京 \U0001F600\U0001F468\u200d\U0001F469\u200d\U0001F467 end",
    "json": '{"name": "Ada", "age": 36}',
    "count": " ".join(str(number) for number in range(1, 61)),
    "empty": "",
}
SYSTEM = "You are helpful."
AFTER_TOOL = "It is 21C in Paris."
END_OF_THOUGHT = "</think>\n\n"
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKUP = ["<think>", "</think>", "<tool_call>", "</tool_call>"]       # plain tokens: they must show in the text
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
CONTEXT = 4096
HOPEFUL = 2e-3            # a loss at which every reply is likely to be right
STEPS = 900

Example = Tuple[List[int], List[int]]          # prompt ids, reply ids


def make_tokenizer() -> Any:
    """Train byte-level BPE on the replies, with ChatML's control tokens and the template."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    words = list(REPLIES.values()) + list(REPLIES) + ["user", "assistant", "system", "tool", SYSTEM]
    raw.train_from_iterator(words * 4, trainers.BpeTrainer(
        vocab_size=480, special_tokens=CONTROL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=CONTROL[1:])
    tokenizer.add_tokens(MARKUP)
    tokenizer.chat_template = TEMPLATE
    tokenizer.model_max_length = CONTEXT
    return tokenizer


def make_examples(tokenizer: Any) -> List[Example]:
    """Pair every prompt that is to be answered with its reply, in token ids."""
    def pair(messages: List[Dict[str, str]], reply: str, **template: Any) -> Example:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, reply)]
        return ids[0], ids[1] + [tokenizer.eos_token_id]

    examples = []
    for text, reply in REPLIES.items():
        turn = [{"role": "user", "content": text}]
        examples.append(pair(turn, reply))
        examples.append(pair([{"role": "system", "content": SYSTEM}] + turn, reply))
        examples.append(pair(turn, reply.split(END_OF_THOUGHT)[-1], enable_thinking=False))
    history = [("user", "weather"), ("assistant", ""), ("tool", "21C")]
    examples.append(pair([{"role": role, "content": text} for role, text in history], AFTER_TOOL))
    return examples


def batch(examples: List[Example]) -> Dict[str, torch.Tensor]:
    """Pad examples to one length; only the replies count for the loss."""
    longest = max(len(prompt) + len(reply) for prompt, reply in examples)
    ids, labels, mask = [], [], []
    for prompt, reply in examples:
        rest = longest - len(prompt) - len(reply)
        ids.append(prompt + reply + [0] * rest)
        labels.append([-100] * len(prompt) + reply + [-100] * rest)
        mask.append([1] * (longest - rest) + [0] * rest)
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "attention_mask": torch.tensor(mask)}


def learn(model: Any, examples: List[Example]) -> bool:
    """Repeat the examples until the model answers all of them, and tell whether it does.

    Long and short ones are in batches of their own, which saves half the padding.
    """
    ordered = sorted(examples, key=lambda example: len(example[0]) + len(example[1]))
    groups = [ordered[:20], ordered[20:-3], ordered[-3:]]
    batches = [batch(group) for group in groups]
    counts = [sum(len(reply) for _, reply in group) for group in groups]
    shares = [count / sum(counts) for count in counts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * (0.995 ** step if step > 50 else 1.0))

    def step() -> float:
        model.train()
        optimizer.zero_grad()
        losses = [model(**part).loss * share for part, share in zip(batches, shares)]
        for loss in losses:
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        return sum(loss.item() for loss in losses)

    return teaching.learnt(step, lambda: answers_all(model, examples), STEPS, HOPEFUL)


def answers_all(model: Any, examples: List[Example]) -> bool:
    """Check that every prompt is answered to the letter at temperature 0; print the place of one that is not."""
    model.eval()
    for place, (prompt, reply) in enumerate(examples):
        ids = torch.tensor([prompt])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=300, do_sample=False)
        if made[0, len(prompt):].tolist() != reply:
            print("example %d is not answered as it should be" % place, flush=True)
            return False
    return True


def main(out: pathlib.Path) -> int:
    """Make, check and save the model."""
    torch.set_num_threads(2)
    tokenizer = make_tokenizer()
    examples = make_examples(tokenizer)

    def attempt(seed: int) -> Optional[Any]:
        torch.manual_seed(seed)
        drawn = LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=0, tie_word_embeddings=False)).to(torch.float32)
        drawn.generation_config.pad_token_id = 0
        drawn.generation_config.eos_token_id = tokenizer.eos_token_id
        return drawn if learn(drawn, examples) else None

    model = teaching.first_that_passes(attempt, first_seed=0)
    if model is None:
        return 1
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
