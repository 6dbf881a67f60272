"""Laws of the embedded base policy: same seed, same bytes, also after a kill; and its folder opens everywhere."""

import signal
import subprocess
import sys
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gift.embedded.base_policy import draw_examples, make_tokenizer, train_base
from gift.embedded.task import CHARACTERS, Arithmetic, problems

TINY = Arithmetic(hidden_size=32, num_layers=1, num_heads=1, num_problems=200, steps=12, batch_size=8)


def weights(folder=None, seed=0, checkpoint_every=5):
    model, _ = train_base(TINY, seed, folder, checkpoint_every=checkpoint_every)
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def undisturbed():
    return weights()


def test_same_seed_same_bytes_and_another_seed_other_bytes(undisturbed):
    torch.rand(7)  # the global random state plays no part
    assert weights() == undisturbed
    assert weights(seed=1) != undisturbed


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    weights()
    assert torch.equal(torch.rand(4), expected)


def test_training_cut_off_between_two_checkpoints_ends_with_the_same_bytes(undisturbed, tmp_path):
    class Cut(Exception):
        pass

    def cut(step, loss):
        if step == 8:
            raise Cut

    with pytest.raises(Cut):
        train_base(TINY, 0, tmp_path, cut, checkpoint_every=5)
    done = []
    model, _ = train_base(TINY, 0, tmp_path, lambda step, loss: done.append(step), checkpoint_every=5)
    assert done == list(range(6, 13))
    assert {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()} == undisturbed


def test_training_killed_with_sigkill_ends_with_the_same_bytes(undisturbed, tmp_path):
    script = f"""
import os, signal
from gift.embedded.task import Arithmetic
from gift.embedded.base_policy import train_base
settings = Arithmetic(**{TINY.model_dump()!r})
kill = lambda step, loss: step == 8 and os.kill(os.getpid(), signal.SIGKILL)
train_base(settings, 0, __import__("pathlib").Path({str(tmp_path)!r}), kill, checkpoint_every=5)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert (tmp_path / "checkpoint.safetensors").exists()
    (tmp_path / "checkpoint.partial").write_bytes(b"a half-written checkpoint")
    assert weights(tmp_path) == undisturbed


def test_a_finished_training_is_only_loaded(tmp_path):
    expected = weights(tmp_path, checkpoint_every=TINY.steps)
    done = []
    model, _ = train_base(TINY, 0, tmp_path, lambda step, loss: done.append(step))
    assert done == []
    assert {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()} == expected


def test_training_lowers_the_loss():
    losses = []
    settings = TINY.model_copy(update={"steps": 100, "lr": 1.0e-2})
    train_base(settings, 0, progress=lambda step, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_examples_have_the_shares_of_the_styles():
    settings = Arithmetic(worked=0.4, guess=0.5, malformed=0.1, batch_size=50)
    pool = problems(200, 0, 4, "train")
    styles = Counter(style for step in range(80) for _, _, style in draw_examples(settings, pool, 0, step))
    for style, share in {"worked": 0.4, "guess": 0.5, "malformed": 0.1}.items():
        assert styles[style] / 4000 == pytest.approx(share, abs=0.025)  # about three standard errors


def test_the_batch_of_a_step_depends_on_seed_and_step_only():
    pool = problems(200, 0, 4, "train")
    first = draw_examples(TINY, pool, 0, 3)
    draw_examples(TINY, pool, 0, 2)
    assert draw_examples(TINY, pool, 0, 3) == first
    assert draw_examples(TINY, pool, 0, 4) != first
    assert draw_examples(TINY, pool, 1, 3) != first


def test_one_token_a_character_and_back():
    tokenizer = make_tokenizer()
    text = CHARACTERS + "7+5=12 12-3=9 #-9  "
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert tokenizer("7<eos>").input_ids[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer("7a\n").input_ids == [ids[CHARACTERS.index("7")], tokenizer.unk_token_id, tokenizer.unk_token_id]


def test_the_saved_folder_opens_with_transformers(tmp_path):
    model, tokenizer = train_base(TINY, 0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    opened, reader = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert reader.get_vocab() == tokenizer.get_vocab()
    assert (reader.eos_token_id, reader.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert reader.decode(reader("7+5=12 #9").input_ids) == "7+5=12 #9"
    ids = torch.tensor([reader("7+5-3+8=").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, model(ids).logits)
    assert opened.generation_config.eos_token_id == tokenizer.eos_token_id
