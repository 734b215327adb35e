"""Make an embedding model: an untrained Llama whose last token is the vector (64 numbers).

    embed.py OUT_DIR

vLLM's attention on a CPU needs heads of at least 32 numbers: with 16 the server starts, answers /health and dies
on the first request (vLLM 0.32.0).
"""

import pathlib
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

CORPUS = ["hello world the quick brown fox jumps over the lazy dog"] * 20
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
CONTEXT = 512


def main(out: pathlib.Path) -> int:
    """Make and save the model."""
    torch.manual_seed(1)
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.model_max_length = CONTEXT
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=CONTEXT,
        bos_token_id=0, eos_token_id=1, pad_token_id=1)
    config.architectures = ["LlamaModel"]
    tokenizer.save_pretrained(out)
    LlamaModel(config).to(torch.float32).save_pretrained(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
