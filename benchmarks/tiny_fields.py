"""Fields that some families of transformers need beside the sizes that are made small by their names.

The keys are the configurations' model types; a nested dictionary is of a sub-configuration. A family is here where
its sizes must agree with each other, where a field holds a size in a form of its own, or where its default is made for
a model of many layers.
"""

from typing import Any

_LAYERS = ["sliding_attention", "full_attention"]
_DENSE_AND_SPARSE = ["dense", "sparse"]
_EXPERTS = {"moe_intermediate_size": 56, "num_experts": 4, "top_k_experts": 2}
_GEMMA = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 99,
          "layer_types": _LAYERS}
_GEMMA3N = _GEMMA | {"laurel_rank": 4, "activation_sparsity_pattern": [0.95, 0.0]}
_GEMMA4 = _GEMMA | {"global_head_dim": 8}
_ASSISTANT = {"backbone_hidden_size": 32, "num_centroids": 9, "text_config": {
    "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0,
    "global_head_dim": 8, "layer_types": ["full_attention", "full_attention"]}}
_QWEN4 = {"indexer_n_heads": None, "indexer_head_dim": None, "linear_conv_kernel_dim": 4}
_GLM5 = {"qk_rope_head_dim": 0, "head_dim": 0, "linear_conv_kernel_dim": 4, "index_topk": 16}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_COMPASS = {"layer_types": _LAYERS, "rope_parameters": {
    "sliding_attention": _ROPE | {"mrope_section": [2, 1, 1]}, "full_attention": None}}
_IMAGE_TOKEN = {"<image>": 5}
_VQ = {"in_channels": 3, "out_channels": 3}
_CONTEXT = {"context_size": 16}
_MUSE = {"num_hidden_layers": 4}
_WORDS = {"blank_token_id": 5}
_SERIES = {"prediction_length": 4, "context_length": 8}
_PE = {"vision_config": {"architecture": "vit_pe_core_large_patch14_336", "model_args": {
    "embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": [28, 28]}}}
_HIERA = {"hidden_size": 32, "num_attention_heads": 1, "num_channels": 3, "embed_dim_per_stage": [32, 64, 128, 256],
          "blocks_per_stage": [1, 1, 1, 1], "num_attention_heads_per_stage": [1, 2, 4, 8],
          "global_attention_blocks": [2]}
_SAM2 = {"backbone_config": _HIERA, "backbone_channel_list": [256, 128, 64, 32]}
_VIBE = {"channels": 1, "num_filters": 4, "depths": [1, 1, 1, 1, 1, 1, 1]}
_MIMI = {"audio_channels": 1, "num_filters": 4, "num_residual_layers": 1, "upsample_groups": 32,
         "vector_quantization_hidden_dimension": 32}
_ENCODEC = {"num_filters": 4, "num_residual_layers": 1, "audio_channels": 1}
_HGNET = {"stem_channels": [3, 8, 8], "stage_in_channels": [8, 16, 16, 16], "stage_mid_channels": [8, 8, 8, 8],
          "stage_out_channels": [16, 16, 16, 16]}
_WIDE = {"width_coefficient": 0.5, "depth_coefficient": 0.5}

FIELDS: dict[str, dict[str, Any]] = {
    # Text.
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": _COMPASS,
    "dbrx": {"attn_config": {"kv_n_heads": 4, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "gemma3n_text": _GEMMA3N,
    "gemma4_assistant": _ASSISTANT,
    "gemma4_text": _GEMMA4,
    "gemma4_unified_assistant": _ASSISTANT,
    "gemma4_unified_text": _GEMMA4,
    "glm5_next_text": _GLM5,
    "gptj": {"rotary_dim": 4},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"qk_head_dim": 16},
    "mamba2": {"num_heads": 8},
    "mellum": {"num_mtp_layers": 1},
    "mimo_v2_flash": {"head_dim": 24, "v_head_dim": 16},
    "perceiver": {"d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 2},
    "qwen4_exp_text": _QWEN4,
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"],
                 "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "num_buckets": 4},
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    # Text and images.
    "align": {"vision_config": _WIDE},
    "bridgetower": {"vision_config": {"hidden_size": 64}},
    "chameleon": {"vocabulary_map": _IMAGE_TOKEN, "vq_config": _VQ | {"base_channels": 32}},
    "cohere_compass": {"text_config": _COMPASS},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": _DENSE_AND_SPARSE}},
    "diffusion_gemma": {"text_config": _EXPERTS | {"global_head_dim": 8, "layer_types": _LAYERS}},
    "dots3_note": {"vision_config": {"mlp_layer_types": _DENSE_AND_SPARSE}, "audio_config": {"adapter_input_size": 32}},
    "emu3": {"vocabulary_map": _IMAGE_TOKEN, "vq_config": _VQ | {"num_attention_heads": 1, "hidden_size": 32}},
    "ernie4_5_vl_moe": {"vision_config": {"in_channels": 3}, "text_config": {
        "rope_parameters": _ROPE | {"mrope_section": [1, 1, 2]}, "moe_intermediate_size": [56, 24],
        "mlp_layer_types": _DENSE_AND_SPARSE}},
    "fast_vlm": {"vision_config": {"architecture": "fastvit_t8", "hidden_size": 768}},
    "gemma3n": {"text_config": _GEMMA3N, "vision_config": {"architecture": "test_efficientnet"}},
    "gemma4": {"text_config": _GEMMA4 | _EXPERTS | {"enable_moe_block": True}},
    "gemma4_unified": {"text_config": _GEMMA4},
    "glm5_next": {"text_config": _GLM5},
    "granite4_vision": {"vision_config": {"hidden_size": 64}, "deepstack_layer_map": [[0, 0], [1, 1]],
                        "downsample_rate": "1/2", "image_seq_length": 16, "spatial_target_layers": [0, 1, 0, 1],
                        "qformer_config": {"num_hidden_layers": 1, "cross_attention_frequency": 1}},
    "inkling_mm_model": {"vision_config": {"patch_size": 8, "temporal_patch_size": 2}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "muse_spark": {"audio_config": _MUSE},
    "perception_lm": _PE,
    "qwen4_exp": {"text_config": _QWEN4},
    "tvp": {"visual_prompt_size": 8, "max_img_size": 32, "num_frames": 2},
    # Sound.
    "bark": {"codec_config": _ENCODEC},
    "csm": {"codec_config": _MIMI},
    "dia": {"decoder_config": {"num_channels": 9}},
    "encodec": _ENCODEC,
    "fastspeech2_conformer_with_hifigan": {"vocoder_config": {"upsample_initial_channel": 32}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "granite_speech5_ctc": {"encoder_config": _CONTEXT},
    "granite_speech5_encoder": _CONTEXT,
    "kyutai_speech_to_text": {"codec_config": _MIMI},
    "mimi": _MIMI,
    "mimi_decoder": _MIMI,
    "mimi_encoder": _MIMI,
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_spark_audio": _MUSE,
    "musicgen_decoder": {"audio_channels": 1},
    "musicgen_melody_decoder": {"audio_channels": 1},
    "nemo_speechlm": {"word_timestamp_config": _WORDS},
    "nemotron3_5_transcribe_word_timestamp": _WORDS,
    "pocket_tts_audio_tokenizer": _MIMI,
    "pocket_tts_audio_tokenizer_decoder": _MIMI,
    "pocket_tts_audio_tokenizer_encoder": _MIMI,
    "vibevoice": {"audio_config": _VIBE, "semantic_model_config": _VIBE},
    "vibevoice_acoustic_tokenizer": _VIBE,
    "vibevoice_acoustic_tokenizer_decoder": _VIBE,
    "vibevoice_acoustic_tokenizer_encoder": _VIBE,
    "vibevoice_asr": {"acoustic_tokenizer_encoder_config": _VIBE, "semantic_tokenizer_encoder_config": _VIBE},
    "vits": {"upsample_initial_channel": 32},
    # Images, films and series of numbers.
    "autoformer": _SERIES,
    "bit": {"num_groups": 4},
    "d_fine": {"backbone_config": _HGNET},
    "dab-detr": {"query_dim": 4, "temperature_width": 20},
    "deimv2": {"backbone_config": _HGNET},
    "dinov3_convnext": {"hidden_sizes": [32, 32, 32, 32], "depths": [1, 1, 1, 1]},
    "edgetam": {"vision_config": {"backbone_config": {"architecture": "repvit_m1", "num_classes": 2}}},
    "edgetam_video": {"vision_config": _SAM2},
    "efficientloftr": {"stage_num_blocks": [1, 1, 1, 1], "out_features": [8, 8, 16, 32]},
    "efficientnet": _WIDE,
    "hgnet_v2": _HGNET,
    "hiera": {"image_size": [64, 64], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "decoder_hidden_size": 32,
              "decoder_depth": 1},
    "informer": _SERIES,
    "pe_audio_video": {"audio_video_config": {"video_config": _PE}},
    "pe_audio_video_encoder": {"video_config": _PE},
    "pe_video": {"video_config": _PE},
    "pe_video_encoder": _PE,
    "pp_doclayout_v3": {"backbone_config": _HGNET},
    "pp_doclayout_v4": {"backbone_config": _HGNET},
    "pp_ocrv5_server_rec": {"backbone_config": _HGNET},
    "sam2": {"vision_config": _SAM2},
    "sam2_hiera_det_model": _HIERA,
    "sam2_video": {"vision_config": _SAM2},
    "sam2_vision_model": _SAM2,
    "swinv2": {"window_size": 2, "patch_size": 4, "num_channels": 3, "depths": [1, 1], "num_heads": [2, 4]},
    "time_series_transformer": _SERIES,
}
