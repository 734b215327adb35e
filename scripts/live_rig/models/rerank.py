"""Make a cross-encoder that finds a document relevant when it holds the word that the query asks for.

    rerank.py OUT_DIR

It knows six words (paris, berlin, london, cat, dog, fish) in "what is X" against "the Y in the city".
"""

import itertools
import pathlib
import string
import sys

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

SUBJECTS = ["paris", "berlin", "london", "cat", "dog", "fish"]
WORDS = ("hello world paris berlin london capital france germany england cat dog fish apple banana "
         "what is the of a in city red blue green").split()
LETTERS = string.ascii_lowercase + string.digits
CONTEXT = 128
ENOUGH = 0.02
STEPS = 600


def make_tokenizer(out: pathlib.Path) -> BertTokenizerFast:
    """Write a WordPiece vocabulary of the known words and single characters, and load it."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + WORDS + list(LETTERS + "?.,!'")
    pieces = list(dict.fromkeys(pieces + ["##" + letter for letter in LETTERS]))
    (out / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab={piece: place for place, piece in enumerate(pieces)}, do_lower_case=True)
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(out)
    return tokenizer


def main(out: pathlib.Path) -> int:
    """Make, teach and save the model."""
    torch.manual_seed(2)
    torch.set_num_threads(2)
    tokenizer = make_tokenizer(out)
    rows = [("what is " + asked, "the %s in the city" % told, float(asked == told))
            for asked, told in itertools.product(SUBJECTS, SUBJECTS)]
    rows += [(word, word, 1.0) for word in SUBJECTS]
    rows += [(word, other, 0.0) for word, other in zip(SUBJECTS, SUBJECTS[1:] + SUBJECTS[:1])]
    inputs = tokenizer([row[0] for row in rows], [row[1] for row in rows], return_tensors="pt", padding=True)
    wanted = torch.tensor([row[2] for row in rows])
    weights = torch.where(wanted > 0, 3.0, 1.0)        # one pair in four matches: without it all scores stay low
    model = BertForSequenceClassification(BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, max_position_embeddings=CONTEXT, num_labels=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(**inputs).logits[:, 0], wanted, weight=weights)
        loss.backward()
        optimizer.step()
        if loss.item() < ENOUGH:
            break
    lowest = torch.sigmoid(model(**inputs).logits[:, 0])[wanted > 0].min().item()
    print("loss %.4f, the least score of a match %.2f" % (loss.item(), lowest))
    if lowest < 0.9:
        return 1
    model.config.architectures = ["BertForSequenceClassification"]
    model.save_pretrained(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
