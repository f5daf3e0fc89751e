"""A primed adapter is a plain PEFT folder: train it with ia2, use it with transformers and PEFT alone.

python examples/peft_folder.py
"""

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import ia2
from ia2.world import MODELS

rows = ia2.read_examples("examples/mood/train.jsonl")
config = ia2.make_config({"model": "tiny", "method": "ia2", "learning_rate": [1e-2]})
run = ia2.Run.create("runs/peft_folder", config, ia2.Data.split(rows, config.seed))
folder = run.train()["ia2"]

# From here on, nothing of ia2 is needed.
tokenizer = AutoTokenizer.from_pretrained(MODELS["tiny"])  # a folder; for your model, its hub id
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODELS["tiny"]), folder).eval()
for query in ("Text:joyful calf noon\nLabel:", "Text:mournful yacht dawn\nLabel:"):
    with torch.no_grad():
        logits = model(**tokenizer(query, return_tensors="pt")).logits[0, -1]
    p = logits[tokenizer.convert_tokens_to_ids(["0", "1"])].softmax(-1)
    print(f"{query!r}: 0 {p[0]:.2f}, 1 {p[1]:.2f}")
