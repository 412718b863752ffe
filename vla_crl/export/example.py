"""Act once with torch alone: the programs of this folder, no other package.

`vla-crl export --torch-export` writes this file beside the programs. There also lie `policy.json`,
which names cameras, state and action, and `tokenizer.json` with the words.
"""

import json
import re
from pathlib import Path

import torch


def tokenize(
    sentence: str, vocabulary: dict[str, int], length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the numbers of words, [1, length] int64, and which are words, [1, length] bool."""
    words = re.findall(r"\w+|[^\w\s]+", sentence.lower())
    ids = [vocabulary.get(word, vocabulary["[UNK]"]) for word in words]
    padding = length - len(ids)
    is_word = [True] * len(ids) + [False] * padding
    return torch.tensor([ids + [vocabulary["[PAD]"]] * padding]), torch.tensor([is_word])


def main() -> None:
    """Act on grey images and a state of zeros."""
    folder = Path(__file__).resolve().parent
    config = json.loads((folder / "policy.json").read_text(encoding="utf-8"))["config"]
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    encode = torch.export.load(folder / "encode.pt2").module()
    act = torch.export.load(folder / "act.pt2").module()

    robot, size = config["embodiment"], config["image_size"]
    images = torch.full((1, len(robot["cameras"]), size, size, 3), 128, dtype=torch.uint8)
    state = torch.zeros(1, len(robot["state"]))
    sentence = " ".join(list(vocabulary)[2:5])
    words = tokenize(sentence, vocabulary, config["max_words"])
    start = torch.zeros(1, config["action_horizon"], len(robot["action"]))
    if config["head"]["initial_noise"] == "normal":
        start = torch.randn(start.shape)
    actions, value = act(*encode(images, state, *words), start)

    print(f"'{sentence}': value {float(value):.3f}, actions {list(actions.shape)}")
    for action in actions[0, : config["execution_horizon"]].tolist():
        named = zip(robot["action"], action, strict=True)
        print("  ".join(f"{name} {number:+.3f}" for name, number in named))


if __name__ == "__main__":
    main()
