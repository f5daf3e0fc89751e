"""A primed adapter trained further by TRL's SFTTrainer, in place of ia2's own second stage.

python examples/trl_sft.py
"""

from datasets import Dataset
from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import ia2
from ia2.world import MODELS

rows = ia2.read_examples("examples/mood/train.jsonl")
config = ia2.make_config({"model": "tiny", "method": "ia2", "learning_rate": [1e-2]})
run = ia2.Run.create("runs/trl_sft", config, ia2.Data.split(rows, config.seed))
folder = str(run.train()["ia2"])


def first_loss(primed: bool) -> float:
    """The loss of TRL's first step, from the primed adapter or from a fresh one."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS["tiny"])
    peft_config = PeftConfig.from_pretrained(folder)
    peft_config.inference_mode = False
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(MODELS["tiny"]), peft_config)
    if primed:
        set_peft_model_state_dict(model, load_peft_weights(folder))
    data = Dataset.from_list([{"prompt": row.query, "completion": row.label} for row in run.data.train])
    args = SFTConfig("runs/trl_sft/trl", max_steps=4, learning_rate=1e-3, logging_steps=1, report_to="none", bf16=False)
    trainer = SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    return float(trainer.state.log_history[0]["loss"])


print(f"first loss: primed {first_loss(True):.3f}, fresh {first_loss(False):.3f}")
