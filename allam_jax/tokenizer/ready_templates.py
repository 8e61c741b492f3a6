"""Chat templates by name, for models that come without one. All mark the model's own turns with `{% generation %}`."""

_FIRST_SYSTEM = """\
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
"""

# As Llama-2-chat: the system text inside the first user turn, a begin and an end token around every exchange.
_LLAMA2 = (
    _FIRST_SYSTEM
    + """\
{%- for message in turns %}
    {%- if message.role != ('user' if loop.index0 % 2 == 0 else 'assistant') %}
        {{- raise_exception('turns must alternate user, assistant, user, ... after an optional system message') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- bos_token + '[INST] ' }}
        {%- if loop.first and system %}
            {{- '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}
        {%- endif %}
        {{- message.content.strip() + ' [/INST]' }}
    {%- else %}
        {%- generation %}{{ ' ' + message.content.strip() + ' ' + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}"""
)

_LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content.strip() + '<|eot_id|>' }}{% endgeneration %}
    {%- else %}
        {{- message.content.strip() + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

_CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

READY = {
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "chatml": _CHATML,
    "allam": "{{- bos_token }}\n" + _CHATML,  # what expanded tokenizers of ours come with (tokenizer_json.py)
}
