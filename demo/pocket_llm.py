"""The demo's pocket LLM: trained here on generated text about the demo world, and asked how often it is right.

    python -m demo.pocket_llm train --out demo/weights [--minutes N]
    python -m demo.pocket_llm evaluate --model demo/weights [--json]

It is a toy of three million weights that knows 600 invented movies and six kinds of prompt, and nothing else.
"""

import argparse
from pathlib import Path

from demo.pocket_card import accuracy_table, model_card
from demo.pocket_chat import PocketChat
from demo.pocket_report import evaluate
from demo.pocket_training import TrainingConfig, train
from demo.world import make_world


def main() -> None:
    """Train or evaluate, as the command line says."""
    parser = argparse.ArgumentParser(description="Train the demo's pocket LLM, or say how often it is right.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("train", help="train, write the model's folder, evaluate, write its card")
    training.add_argument("--out", type=Path, required=True, help="folder for the weights, the tokenizer and the card")
    training.add_argument("--minutes", type=float, help="stop by then (default: the settings of the committed weights)")
    evaluation = verbs.add_parser("evaluate", help="ask about every movie and a sample of the demo users' partitions")
    evaluation.add_argument("--model", type=Path, required=True, help="the model's folder")
    evaluation.add_argument("--lists", type=int, default=400, help="at most so many partitions, and groups of a kind")
    evaluation.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.verb == "train":
        config = TrainingConfig() if arguments.minutes is None else TrainingConfig(max_minutes=arguments.minutes)
        report = train(config, arguments.out)
        accuracy = evaluate(PocketChat(arguments.out), make_world())
        (arguments.out / "README.md").write_text(model_card(config, report, accuracy), encoding="utf-8")
        print(accuracy_table(accuracy))
    else:
        accuracy = evaluate(PocketChat(arguments.model), make_world(), lists=arguments.lists)
        print(accuracy.model_dump_json(indent=2) if arguments.json else accuracy_table(accuracy))


if __name__ == "__main__":
    main()
