"""The allowed fields of a public request to SGLang: a decision for every field in every supported version.

A test compares the lists with the real models of entrypoints/openai/protocol.py and entrypoints/anthropic/protocol.py.
A field that no list names is new: add it to `plain`, `bounded` or `refused`, with what its code does as the reason.
"""

from __future__ import annotations

from torpor.launcher import RequestFields

__all__ = ["FIELDS"]

FIELDS = RequestFields(
    plain=(
        "add_generation_prompt",
        "add_special_tokens",
        "apply_softmax",
        "audio_data",  # SGLang's own, of the uploaded file
        "audio_duration_s",
        "betas",
        "cache_salt",
        "continue_final_message",
        "dimensions",
        "echo",
        "encoding_format",
        "extra_key",
        "frequency_penalty",
        "ignore_eos",
        "include",
        "instruct",
        "instructions",
        "item_first",
        "language",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens",
        "max_tool_calls",
        "metadata",
        "min_p",
        "min_tokens",
        "model",
        "no_stop_trim",
        "parallel_tool_calls",
        "presence_penalty",
        "reasoning",
        "reasoning_effort",
        "repetition_penalty",
        "return_cached_tokens_details",
        "return_documents",
        "return_flat_raw_output_top_logprobs",
        "return_flat_raw_top_logprobs_b64",
        "return_input_ids_in_sglext",
        "return_meta_info",
        "return_output_ids_in_sglext",
        "return_prompt_token_ids",
        "return_sampling_mask",
        "return_spec_tokens_details",
        "return_token_ids",
        "return_token_logprobs",
        "sampling_logprobs_mode",
        "score_extraction_token",
        "seed",
        "separate_reasoning",
        "service_tier",  # read and echoed, without an effect
        "skip_special_tokens",
        "store",  # the patch switches it off
        "stream",
        "stream_options",
        "stream_reasoning",
        "suffix",
        "task",
        "temperature",
        "thinking",
        "timestamp_granularities",
        "tool_choice",
        "top_k",
        "top_n",
        "top_p",
        "truncation",
        "use_audio_in_video",
        "user",
    ),
    bounded=(
        # Grammars: compiled beside the batch, for as long as it takes; see the table of parameters in SECURITY.md.
        "ebnf",
        "json_schema",
        "regex",
        "response_format",
        "tools",
        "best_of",
        "chat_template_kwargs",
        "documents",
        "input",
        "input_ids",
        "items",
        "label_token_ids",
        "logit_bias",  # its keys are checked by the engine (sampling_params.py, verify)
        "logprobs",
        "messages",
        "n",
        "output_config",
        "prompt",
        "query",
        "stop",
        "stop_sequences",
        "stop_token_ids",
        "system",
        "text",
        "tokens",
        "top_logprobs",
    ),
    refused=(
        (
            "it names servers or ranks that the engine would talk to",
            (
                "bootstrap_host",
                "bootstrap_port",
                "bootstrap_room",
                "data_parallel_rank",
                "disagg_prefill_dp_rank",
                "routed_dp_rank",
            ),
        ),
        ("it is code that the engine would run, or that code's input", ("custom_logit_processor", "custom_params")),
        (
            "the scheduler would match it with Python's `re`, in which one expression can take for ever",
            ("stop_regex",),
        ),
        (
            "it keeps something between requests, which a replica restored from a snapshot does not share",
            ("background", "previous_response_id", "session_id", "session_params"),
        ),
        ("ids of requests are the server's: one that comes twice takes another's answer", ("request_id", "rid")),
        (
            "vectors of the caller's are not checked by anybody",
            ("embed_override_token_id", "embed_overrides", "item_embed_overrides", "query_embed_overrides"),
        ),
        ("it overtakes other callers", ("priority",)),
        ("it chooses among the server's adapters", ("lora_path",)),
        ("it makes names in the server's metrics", ("custom_labels",)),
        (
            "it hands out the model's inner state, megabytes for a prompt",
            (
                "return_hidden_states",
                "return_pooled_hidden_states",
                "return_routed_experts",
                "routed_experts_start_len",
            ),
        ),
        (
            "it changes how much memory media takes",
            ("images_config", "max_dynamic_patch", "min_dynamic_patch", "mm_processor_kwargs", "video_config"),
        ),
        ("a watermark is the server's", ("watermark",)),
    ),
    plain_headers=(
        "x-api-key",  # what the Anthropic dialect has in place of a bearer key; the guard asks for a bearer key there, too
        "x-exa-integration",  # goes out to a tool server
        "x-sglext-ids-framed",
        "x-sglext-return-input-ids",
        "x-sglext-return-output-ids",
        "x-smg-routing-key",  # a word in metrics and in the order of a policy that is off
    ),
    refused_headers=(
        ("it names a rank that the engine would talk to", ("x-data-parallel-rank",)),
        (
            "it sets a field of the request past what is refused there",
            (
                "x-override-bootstrap-host",
                "x-override-bootstrap-port",
                "x-override-bootstrap-room",
                "x-override-conversation-id",
                "x-override-disagg-prefill-dp-rank",
                "x-override-priority",
                "x-override-rid",
                "x-override-routed-dp-rank",
            ),
        ),
        ("bodies are not unpacked here", ("x-body-compressed",)),
    ),
)
