"""Make a cross-encoder that finds a document relevant when it holds the word that the query asks for.

    rerank.py OUT_DIR

It knows six words (paris, berlin, london, cat, dog, fish), in "what is X" against "the Y in the city" and each alone.
Nothing is trained: BERT stays as it was drawn, and its last layer is solved for the 48 pairs below. The scores of
all other pairs are arbitrary.
"""

import itertools
import pathlib
import string
import sys
from typing import Any, List, Tuple

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

SUBJECTS = ["paris", "berlin", "london", "cat", "dog", "fish"]
WORDS = ("hello world paris berlin london capital france germany england cat dog fish apple banana "
         "what is the of a in city red blue green").split()
LETTERS = string.ascii_lowercase + string.digits
CONTEXT = 128
LOGIT = 4.0               # of a match, a score of 0.982; its negative is that of every other pair, 0.018
LEAST_MATCH = 0.9
HIGHEST_OTHER = 0.1


def make_tokenizer(out: pathlib.Path) -> BertTokenizerFast:
    """Write a WordPiece vocabulary of the known words and single characters, and load it."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + WORDS + list(LETTERS + "?.,!'")
    pieces = list(dict.fromkeys(pieces + ["##" + letter for letter in LETTERS]))
    (out / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab={piece: place for place, piece in enumerate(pieces)}, do_lower_case=True)
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(out)
    return tokenizer


def make_pairs() -> List[Tuple[str, str, bool]]:
    """List query, document and whether they match."""
    pairs = [("what is " + asked, "the %s in the city" % told, asked == told)
             for asked, told in itertools.product(SUBJECTS, SUBJECTS)]
    pairs += [(word, word, True) for word in SUBJECTS]
    pairs += [(word, other, False) for word, other in zip(SUBJECTS, SUBJECTS[1:] + SUBJECTS[:1])]
    return pairs


def solve(model: Any, inputs: Any, matches: torch.Tensor) -> None:
    """Set the last layer so that every pair gets exactly the logit that is wanted.

    There are fewer pairs (48) than unknowns (128 weights and the bias), so such a layer exists. 64 numbers a vector,
    or weights drawn from a wider range, can make the system ill-conditioned.
    """
    pooled = model.bert(**inputs).pooler_output.double()
    features = torch.cat([pooled, torch.ones(len(pooled), 1, dtype=torch.float64)], dim=1)
    wanted = torch.where(matches, LOGIT, -LOGIT).double()
    solution = torch.linalg.pinv(features) @ wanted
    model.classifier.weight.copy_(solution[:-1].unsqueeze(0))
    model.classifier.bias.copy_(solution[-1:])


def main(out: pathlib.Path) -> int:
    """Make, check and save the model."""
    torch.manual_seed(2)
    tokenizer = make_tokenizer(out)
    pairs = make_pairs()
    inputs = tokenizer([pair[0] for pair in pairs], [pair[1] for pair in pairs], return_tensors="pt", padding=True)
    matches = torch.tensor([pair[2] for pair in pairs])
    model = BertForSequenceClassification(BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, max_position_embeddings=CONTEXT, num_labels=1, initializer_range=0.1))
    model.eval()
    with torch.no_grad():
        solve(model, inputs, matches)
        scores = torch.sigmoid(model(**inputs).logits[:, 0])
    lowest, highest = scores[matches].min().item(), scores[~matches].max().item()
    print("the least score of a match is %.3f, the highest of another pair %.3f" % (lowest, highest))
    if lowest < LEAST_MATCH or highest > HIGHEST_OTHER:
        return 1
    model.config.architectures = ["BertForSequenceClassification"]
    model.save_pretrained(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
