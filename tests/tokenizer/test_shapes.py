"""Published models' tokenizers and chat templates, token for token against transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import AddedToken
from transformers import AutoTokenizer

from tests.tokenizer.shapes import (
    GPT4_SPLIT,
    QWEN_SPLIT,
    Shape,
    byte_level,
    sentencepiece,
    settings,
    text_of,
    written,
)
from zeropoint.calibrate import calibration
from zeropoint.errors import UsageError
from zeropoint.tokenizer import Tokenizer
from zeropoint.tokenizer.hub import HubTokenizer

LLAMA = ("<unk>", "<s>", "</s>")
END = "<|endoftext|>"

LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3_CHAT = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA31_CHAT = (
    "{{- bos_token }}\n{%- if custom_tools is defined %}\n    {%- set tools = custom_tools %}\n{%- endif %}\n"
    '{%- if not date_string is defined %}\n    {%- set date_string = "26 Jul 2024" %}\n{%- endif %}\n'
    "{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n"
    '    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = "" %}\n{%- endif %}\n'
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}\n{%- if tools is not none %}\n'
    '    {{- "Environment: ipython\\n" }}\n{%- endif %}\n{{- "Today Date: " + date_string + "\\n\\n" }}\n'
    '{{- system_message }}\n{{- "<|eot_id|>" }}\n{%- for message in messages %}\n'
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim"
    " + '<|eot_id|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA3_CHAT = (
    "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n"
    "    {%- if messages[0]['content'] is string -%}\n"
    "        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}\n    {%- else -%}\n"
    "        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}\n    {%- endif -%}\n"
    '    {%- set loop_messages = messages[1:] -%}\n{%- else -%}\n    {%- set first_user_prefix = "" -%}\n'
    "    {%- set loop_messages = messages -%}\n{%- endif -%}\n{%- for message in loop_messages -%}\n"
    "    {%- if (message['role'] == 'assistant') -%}\n        {%- set role = \"model\" -%}\n    {%- else -%}\n"
    "        {%- set role = message['role'] -%}\n    {%- endif -%}\n"
    "    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else \"\") }}\n"
    "    {%- if message['content'] is string -%}\n        {{ message['content'] | trim }}\n"
    "    {%- elif message['content'] is iterable -%}\n        {%- for item in message['content'] -%}\n"
    "            {%- if item['type'] == 'image' -%}\n                {{ '<start_of_image>' }}\n"
    "            {%- elif item['type'] == 'text' -%}\n                {{ item['text'] | trim }}\n"
    "            {%- endif -%}\n        {%- endfor -%}\n    {%- else -%}\n"
    '        {{ raise_exception("Invalid content type") }}\n    {%- endif -%}\n'
    "    {{ '<end_of_turn>\n' }}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n"
    "    {{'<start_of_turn>model\n'}}\n{%- endif -%}\n"
)
QWEN2_CHAT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN25_CHAT = (
    "{%- if tools %}\n    {{- '<|im_start|>system\\n# Tools\\n' }}\n    {%- for tool in tools %}\n"
    '        {{- "\\n" }}\n        {{- tool | tojson }}\n    {%- endfor %}\n{%- else %}\n'
    "    {%- if messages[0]['role'] == 'system' %}\n"
    "        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n    {%- else %}\n"
    "        {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}\n    {%- endif %}\n{%- endif %}\n"
    '{%- for message in messages %}\n    {%- if (message.role == "user") or '
    '(message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}\n'
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
PHI3_CHAT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR_CHAT = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
SMOLLM2_CHAT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COMMAND_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|START_OF_TURN_TOKEN|><|' + message['role'] | upper + '_TOKEN|>' + message['content'] | trim"
    " + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
DEEPSEEK_CHAT = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, system_prompt='') %}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    "{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{'<\uff5cUser\uff5c>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<\uff5cAssistant\uff5c>' + content + eos_token}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<\uff5cAssistant\uff5c><think>\\n'}}{% endif %}"
)
GRANITE_CHAT = (
    "{%- if tools %}\n    {{- '<|start_of_role|>tools<|end_of_role|>' }}\n    {{- tools | tojson(indent=4) }}\n"
    "{%- endif %}\n{%- if documents is not none %}{{ 'documents' }}{%- endif %}\n{%- for message in messages %}\n"
    "    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}\n"
    "    {%- if loop.last and add_generation_prompt %}\n"
    "        {{- '<|start_of_role|>assistant<|end_of_role|>' }}\n    {%- endif %}\n{%- endfor %}"
)
SMOLLM3_CHAT = (
    '{%- set reasoning_mode = "/think" if enable_thinking is not defined or enable_thinking else "/no_think" -%}\n'
    "{{- '<|im_start|>system\\nToday Date: ' ~ strftime_now('%Y') ~ '\\nReasoning Mode: ' ~ reasoning_mode }}\n"
    "{%- for message in messages -%}\n    {%- if message.role == 'user' -%}\n"
    "        {{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "    {%- elif message.role == 'assistant' -%}\n        {% generation %}\n"
    "        {{ '<|im_start|>assistant\\n' + message.content.lstrip('\\n') + '<|im_end|>\\n' }}\n"
    "        {% endgeneration %}\n    {%- endif -%}\n{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n    {{ '<|im_start|>assistant\\n' }}\n{%- endif -%}\n"
)

L3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
IM = (END, "<|im_start|>", "<|im_end|>")
GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
PHI3_TURNS = tuple(
    AddedToken(text, rstrip=True, special=True, normalized=False)
    for text in ("<|assistant|>", "<|user|>", "<|system|>", "<|end|>")
)

SHAPES: dict[str, Shape] = {
    "Llama 2 chat": Shape(
        "llama",
        sentencepiece(prefix=True, bos="<s>"),
        LLAMA,
        settings("LlamaTokenizer", written("<s>"), written("</s>"), unk_token=written("<unk>"),
                 add_bos_token=True, add_eos_token=False, legacy=False),
        LLAMA2_CHAT,
        bos="<s>",
    ),
    "TinyLlama chat": Shape(
        "llama",
        sentencepiece(prefix=True, bos="<s>"),
        LLAMA,
        settings("LlamaTokenizer", "<s>", "</s>", unk_token="<unk>", pad_token="</s>"),
        ZEPHYR_CHAT,
        bos="<s>",
    ),
    "Llama 3 Instruct": Shape(
        "llama",
        byte_level(split=GPT4_SPLIT, bos="<|begin_of_text|>", ignore_merges=True),
        L3_SPECIAL,
        settings("PreTrainedTokenizerFast", "<|begin_of_text|>", "<|eot_id|>"),
        LLAMA3_CHAT,
        {"generation_config.json": {"eos_token_id": [1, 4]}},
        bos="<|begin_of_text|>",
    ),
    "Llama 3.1 Instruct": Shape(
        "llama",
        byte_level(split=GPT4_SPLIT, bos="<|begin_of_text|>", after=True, ignore_merges=True),
        L3_SPECIAL,
        settings("PreTrainedTokenizerFast", "<|begin_of_text|>", "<|eot_id|>", clean_up_tokenization_spaces=True),
        LLAMA31_CHAT,
        bos="<|begin_of_text|>",
    ),
    "Gemma 2 it": Shape(
        "gemma2",
        sentencepiece(prefix=False, bos="<bos>"),
        GEMMA_SPECIAL,
        settings("GemmaTokenizer", "<bos>", "<eos>", unk_token="<unk>", pad_token="<pad>", add_bos_token=True,
                 additional_special_tokens=["<start_of_turn>", "<end_of_turn>"]),
        GEMMA_CHAT,
        bos="<bos>",
    ),
    "Gemma 3 it": Shape(
        "gemma3_text",
        sentencepiece(prefix=False, bos="<bos>", split=True),
        GEMMA_SPECIAL,
        settings("GemmaTokenizer", "<bos>", "<eos>", unk_token="<unk>", pad_token="<pad>",
                 boi_token="<start_of_image>", image_token="<image_soft_token>"),
        None,
        {"chat_template.jinja": GEMMA3_CHAT},
        bos="<bos>",
    ),
    "Qwen2 Instruct": Shape(
        "qwen2",
        byte_level(split=QWEN_SPLIT, nfc=True),
        IM,
        settings("Qwen2Tokenizer", None, "<|im_end|>", unk_token=None, pad_token=END, add_prefix_space=False,
                 additional_special_tokens=["<|im_start|>", "<|im_end|>"]),
        QWEN2_CHAT,
    ),
    "Qwen2.5 Instruct": Shape(
        "qwen2",
        byte_level(split=QWEN_SPLIT, nfc=True),
        IM,
        settings("Qwen2Tokenizer", None, "<|im_end|>", add_bos_token=False, errors="replace"),
        QWEN25_CHAT,
    ),
    "Mistral 0.1 Instruct": Shape(
        "mistral",
        sentencepiece(prefix=True, bos="<s>"),
        LLAMA,
        settings("LlamaTokenizer", "<s>", "</s>", unk_token="<unk>", add_bos_token=True, legacy=True),
        MISTRAL_CHAT,
        bos="<s>",
    ),
    "Mistral 0.3 Instruct": Shape(
        "mistral",
        sentencepiece(prefix=True, bos="<s>", metaspace="first"),
        (*LLAMA, "[INST]", "[/INST]"),
        settings("LlamaTokenizer", "<s>", "</s>", unk_token="<unk>", add_bos_token=True, legacy=False),
        MISTRAL_CHAT,
        bos="<s>",
    ),
    "Phi-3 mini": Shape(
        "phi3",
        sentencepiece(prefix=True, bos=None),
        (*LLAMA, END, *PHI3_TURNS),
        settings("LlamaTokenizer", "<s>", END, unk_token="<unk>", add_bos_token=False, legacy=False),
        PHI3_CHAT,
    ),
    "GPT-2": Shape("gpt2", byte_level(), (END,), {"model_max_length": 1024}),
    "Phi-2": Shape("phi", byte_level(), (END,), settings("CodeGenTokenizer", END, END, unk_token=END)),
    "Pythia": Shape(
        "gpt_neox",
        byte_level(nfc=True),
        (END, "<|padding|>"),
        settings("GPTNeoXTokenizer", END, END, unk_token=END, add_prefix_space=False),
    ),
    "StableLM Zephyr": Shape(
        "stablelm",
        byte_level(nfc=True),
        (END, "<|padding|>"),
        settings("GPTNeoXTokenizer", END, END, unk_token=END),
        ZEPHYR_CHAT,
    ),
    "OPT": Shape(
        "opt",
        byte_level(),
        ("<pad>", "</s>"),
        settings("GPT2Tokenizer", written("</s>", normalized=True), written("</s>", normalized=True),
                 unk_token=written("</s>", normalized=True), pad_token=written("<pad>", normalized=True),
                 add_bos_token=True, errors="replace"),
        bos="</s>",
        tokenizer_file=False,
    ),
    "SmolLM2 Instruct": Shape(
        "llama",
        byte_level(digits=True),
        IM,
        settings("GPT2Tokenizer", "<|im_start|>", "<|im_end|>", unk_token=END, pad_token="<|im_end|>",
                 add_prefix_space=False),
        SMOLLM2_CHAT,
    ),
    "SmolLM3": Shape(
        "smollm3",
        byte_level(split=GPT4_SPLIT, after=True),
        IM,
        settings("PreTrainedTokenizerFast", None, "<|im_end|>", pad_token="<|im_end|>"),
        None,
        {"chat_template.jinja": SMOLLM3_CHAT},
    ),
    "Command-R": Shape(
        "cohere",
        byte_level(digits=True, nfc=True, bos="<BOS_TOKEN>"),
        ("<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>",
         "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        settings("CohereTokenizer", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", pad_token="<PAD>", add_bos_token=True),
        [{"name": "rag", "template": "documents"}, {"name": "default", "template": COMMAND_CHAT}],
        bos="<BOS_TOKEN>",
    ),
    "OLMo 2": Shape(
        "olmo2", byte_level(split=GPT4_SPLIT), (END,), settings("GPT2Tokenizer", END, END, unk_token=END), ZEPHYR_CHAT
    ),
    "DeepSeek R1 distilled Qwen": Shape(
        "qwen2",
        byte_level(split=QWEN_SPLIT, bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>"),
        ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
         "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),
        settings("LlamaTokenizerFast", written("<\uff5cbegin\u2581of\u2581sentence\uff5c>", normalized=True),
                 written("<\uff5cend\u2581of\u2581sentence\uff5c>", normalized=True), legacy=True, add_bos_token=True),
        DEEPSEEK_CHAT,
        bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    ),
    "Granite 3": Shape(
        "granite",
        byte_level(digits=True),
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        settings("GPT2Tokenizer", "<|end_of_text|>", "<|end_of_text|>", add_bos_token=False),
        GRANITE_CHAT,
    ),
    "StarCoder2": Shape("starcoder2", byte_level(digits=True), (END,), settings("GPT2Tokenizer", END, END)),
    "special_tokens_map.json alone": Shape(
        "llama",
        byte_level(bos="<s>"),
        ("<s>", "</s>"),
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        MISTRAL_CHAT,
        {"special_tokens_map.json": {"bos_token": written("<s>"), "eos_token": "</s>"},
         "added_tokens.json": {"<|tool|>": 420}},
        bos="<s>",
    ),
    "added_tokens_decoder": Shape(
        "llama",
        byte_level(),
        ("<s>", "</s>"),
        settings("PreTrainedTokenizerFast", "<s>", "</s>", pad_token="[PAD]", added_tokens_decoder={
            "0": {"content": "<s>", "special": True, "lstrip": True, "rstrip": False, "normalized": False,
                  "single_word": False},
            "420": {"content": "<think>", "special": False, "lstrip": False, "rstrip": False, "normalized": False,
                    "single_word": False}}),
        MISTRAL_CHAT,
    ),
}  # fmt: skip

TEXTS = (
    "Hello, the sky is blue!",
    " the sky",
    "  two  spaces\n\n  the",
    "\nthe answer\r\n",
    "12345 and 2024",
    "日本語 🐱 é e\u0301",
    "it's we'RE they'll",
    "[INST] the [/INST] sky",
    "xxx   ",
    "\tthe\t\tsky ",
    "",
)
TALKS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "user", "content": " Why? "},
        {"role": "assistant", "content": "é, it's \n blue."},
        {"role": "user", "content": "And 2024?\n"},
    ],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
    [
        {"role": "user", "content": "hi", "tool_calls": None},
        {"role": "assistant", "content": "yes", "thinking": "well"},
        {"role": "assistant", "content": "twice"},
    ],
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


def open_both(name: str, folders: Path) -> tuple[Any, Any, Shape]:
    shape, folder = SHAPES[name], folders / name.replace(" ", "-")
    if not folder.is_dir():
        shape.write(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    return Tokenizer(folder) if shape.tokenizer_file else HubTokenizer(theirs), theirs, shape


@pytest.mark.parametrize("name", SHAPES)
def test_texts_and_prompts(name: str, folders: Path) -> None:
    ours, theirs, shape = open_both(name, folders)
    special = [text_of(token) for token in shape.special]
    mixed = f"so {special[-1]}the sky{special[-1]} the {special[0]}\nthe{special[-1]}\n\n {special[0]}"
    assert ours.special == theirs.special_tokens_map
    prefix = [] if shape.bos is None else [theirs.convert_tokens_to_ids(shape.bos)]
    assert ours.prefix == prefix
    assert ours.start_token == (theirs.eos_token_id if theirs.bos_token_id is None else theirs.bos_token_id)
    for text in (*TEXTS, mixed):
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == plain
        assert ours.encode_prompt(text) == theirs(text)["input_ids"]
        assert ours.decode(plain) == theirs.decode(plain, clean_up_tokenization_spaces=False)
    if shape.bos is not None:
        assert (
            ours.encode_prompt(shape.bos + "the")
            == theirs(shape.bos + "the", add_special_tokens=False).input_ids
        )


@pytest.mark.parametrize(
    "name", [name for name, shape in SHAPES.items() if shape.template or "chat_template.jinja" in shape.files]
)
@pytest.mark.parametrize("talk", range(len(TALKS)))
def test_conversations(name: str, talk: int, folders: Path) -> None:
    ours, theirs, _ = open_both(name, folders)
    for prompt in (True, False):
        try:
            wanted = theirs.apply_chat_template(TALKS[talk], tokenize=False, add_generation_prompt=prompt)
        except TemplateError as refusal:
            with pytest.raises(UsageError, match=re.escape(str(refusal))):
                ours.chat(TALKS[talk])
            return
        assert ours.chat_text(TALKS[talk], add_generation_prompt=prompt) == wanted
    ids = theirs.apply_chat_template(TALKS[talk], add_generation_prompt=True, return_dict=False)
    assert ours.chat(TALKS[talk]) == ids


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.template])
def test_calibration_has_the_ids_of_a_conversation(name: str, folders: Path, tmp_path: Path) -> None:
    ours, theirs, _ = open_both(name, folders)
    talk = TALKS[1][:2]
    wanted = theirs.apply_chat_template(talk, return_dict=False)
    file = tmp_path / "talk.jsonl"
    file.write_text("\n".join([json.dumps({"messages": talk})] * 3))
    for tokenizer in (ours, theirs):
        made = calibration(tokenizer, file, tokens=3 * len(wanted), length=len(wanted))
        assert made.tokens.tolist() == [wanted] * 3
