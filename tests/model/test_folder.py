"""Sizes in a configuration: those of published models pass, and those of which each would be an object do not."""

import pytest

from nonlin.model.folder import Unfit, must_be_few, must_fit


@pytest.mark.parametrize("config", [
    {"image_size": 4096}, {"image_size": [2560, 1920]}, {"num_labels": 21_841}, {"num_labels": 1_000_000},
    {"num_experts": 1 << 20}, {"num_embeddings": 10**8}, {"num_hash_buckets": 10**8}, {"n_ctx": 10**8},
    {"n_positions": 10**8}, {"num_frames": 16_384}, {"num_params": 10**12}, {"log_scaling_n_floor": 10**8},
    {"n_embd": 10**8}, {"num_train_steps": 10**9}, {"intermediate_size_per_layer": [14_336] * 3},
    {"hidden_size_per_layer": 12_288}, {"temporal_resolution": 44_100}, {"vocab_size": 10**8},
    {"id2label": {0: "a", 1: "b"}}, {"num_hidden_layers": True}, {"num_items": 10**8}], ids=str)
def test_sizes_of_published_models_pass(config):
    must_be_few(config)
    must_be_few({"text_config": config})


@pytest.mark.parametrize(("name", "most"), [
    ("num_labels", 1_000_000), ("num_hidden_layers", 10_000), ("n_layer", 10_000), ("depths", 10_000),
    ("num_layers_per_stack", 10_000), ("layers_per_block", 10_000), ("H_cycles", 10_000), ("image_size", 16_384),
    ("resolution", 16_384), ("num_frames", 16_384), ("frames_per_clip", 16_384),
    ("num_attention_heads", 1 << 24), ("num_attention_heads_per_layer", 1 << 24),
    ("n_codes_total", 1 << 24), ("latent_query_num", 1 << 24), ("num_local_experts", 1 << 24)])
def test_numbers_of_which_each_would_be_made_are_bounded(name, most):
    for value in (most, [most, most]):
        must_be_few({name: value})
    for value in (most + 1, [1, most + 1]):
        with pytest.raises(Unfit, match=f"at most {most:,} as part.{name}; it is {most + 1:,}"):
            must_be_few({"part": {name: value}})


@pytest.mark.parametrize("name", ["hidden_size_per_layer", "num_attention_heads_per_layer"])
def test_a_size_of_each_layer_is_no_number_of_layers(name):
    must_fit({name: 64}, 20, 10**6)
    with pytest.raises(Unfit, match="as many layers"):
        must_fit({"num_layers_per_stack": 64}, 20, 10**6)
