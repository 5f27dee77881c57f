"""Train a Hugging Face model with accelerated feed-forward blocks and a health callback.

    python examples/hugging_face_trainer.py --steps 50
"""

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import nonlin
from nonlin.data import load_corpus


def examples(data: str | None, context: int, count: int) -> list[dict[str, torch.Tensor]]:
    """Sequences of bytes, as the Trainer takes them."""
    text = b"".join(document for _, document in load_corpus(data).documents)[: context * count]
    rows = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().reshape(-1, context)
    return [{"input_ids": row, "labels": row} for row in rows]


def main() -> None:
    """Accelerate, train, report; then save a checkpoint that loads without nonlin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a file or a folder; without it, the text of Python's standard library")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", default="trained")
    asked = parser.parse_args()

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(  # or any AutoModelForCausalLM.from_pretrained(...)
        hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=256, max_position_embeddings=64))
    print(nonlin.accelerate(model, memory="lean"))

    callback = nonlin.health.trainer_callback(every=max(1, asked.steps // 4), gradients=True)
    trainer = Trainer(
        model=model, train_dataset=examples(asked.data, 64, 16 * asked.steps), callbacks=[callback],
        args=TrainingArguments(
            asked.out, max_steps=asked.steps, per_device_train_batch_size=16, learning_rate=3e-3, report_to=[],
            logging_steps=max(1, asked.steps // 5), save_strategy="no", use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True))
    trainer.train()

    for entry in trainer.state.log_history:
        if "loss" in entry:
            print(f"step {entry['step']}: loss {float(entry['loss']):.3f} nats")
    for finding in callback.health.findings():
        print(f"{finding['grade']}: {finding['text']} {finding['action']}")
    nonlin.restore(model)
    model.save_pretrained(asked.out)
    print(f"saved {asked.out}")


if __name__ == "__main__":
    main()
