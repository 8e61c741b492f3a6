"""Fine-tuning of seconds: `--config tests/tasks/tiny_chats.py:ROOT,TASK`, where ROOT holds what `fill` has written."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs import base

FACTS = {"Egypt": "Cairo", "Oman": "Muscat", "مصر": "القاهرة", "عمان": "مسقط", "Iraq": "Baghdad", "اليمن": "صنعاء"}
ASKED = ("the capital of {}?", "what is the capital of {}", "{}: its capital", "capital, {}")


def fill(root: Path) -> None:
    """A model with random weights and its tokenizer, conversations in two languages, and pairs."""
    from small_server import save_model

    save_model(root)
    chats: dict[str, list] = {"en": [], "ar": []}
    pairs = []
    for asked in ASKED:
        for land, capital in FACTS.items():
            other = next(iter(FACTS)) if land == "Oman" else "Oman"
            turns = [("user", asked.format(land)), ("assistant", capital), ("user", asked.format(other))]
            messages = [{"role": role, "content": text} for role, text in (*turns, ("assistant", FACTS[other]))]
            chats["ar" if land > "z" else "en"].append({"messages": messages})
            pairs.append({"prompt": asked.format(land), "chosen": capital, "rejected": FACTS[other] + " or so"})
    for name, records in {"en": chats["en"], "ar": chats["ar"], "pairs": pairs}.items():
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (root / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def get_config(argument: str) -> ConfigDict:
    """See the module."""
    root, task = argument.rsplit(",", 1)
    config = base.get_config(task)
    config.init.weights = f"{root}/model"
    for name in ("en", "ar") if task == "sft" else ("pairs",):
        config.conversations.sources[name] = base.conversations(path=f"{root}/{name}.jsonl")
    config.conversations.update(held_out_share=0.2, epochs=12.0)
    config.compute.dropout_residual = 0.1 if task == "sft" else 0.0
    config.data.update(seq_len=160, batch_size=16)
    config.train.update(accumulation=2, loss_chunks=2)
    config.eval.update(every=4, batch_size=8)
    config.schedule.update(name="cosine", peak_lr=3e-3, warmup_steps=1)
    config.checkpoint.update(every=2, keep_last=2)
    config.metrics.tensorboard = False
    return config
