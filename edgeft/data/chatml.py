"""ChatML with tools, calls and results: the chat template of `edgeft/nano`, and `model.chat_template: chatml`.

Without tools it renders what plain ChatML renders. Tools stand in the system message, one a line: name, description,
parameters as JSON, names of the required ones; a schema that is more than a list of parameters stands whole. A call is
`<tool_call>{"name": ..., "arguments": ...}</tool_call>` (Hermes, Qwen), which `edgeft.runtime.tool_calls` and
llama.cpp's server read. A result is a turn of role `tool`. Jinja as transformers and llama.cpp's own engine render it.
"""

CHATML = r"""
{%- set offered = namespace(text='') -%}
{%- if tools -%}
    {%- set offered.text = 'Tools:' -%}
    {%- for tool in tools -%}
        {%- set function = tool['function'] if tool['function'] else tool -%}
        {%- set schema = function['parameters'] if function['parameters'] else {} -%}
        {%- set offered.text = offered.text + '\n' + function['name'] -%}
        {%- if function['description'] -%}
            {%- set offered.text = offered.text + ': ' + function['description'] -%}
        {%- endif -%}
        {%- set kept = namespace(whole=false) -%}
        {%- for key, value in schema.items() -%}
            {%- if key not in ['type', 'properties', 'required', 'title', '$schema', 'additionalProperties'] -%}
                {%- set kept.whole = true -%}
            {%- elif key == 'additionalProperties' and value is mapping -%}
                {%- set kept.whole = true -%}
            {%- endif -%}
        {%- endfor -%}
        {%- if kept.whole -%}
            {%- set offered.text = offered.text + ' ' + (schema | tojson) -%}
        {%- elif schema['properties'] -%}
            {%- set offered.text = offered.text + ' ' + (schema['properties'] | tojson) -%}
            {%- if schema['required'] -%}
                {%- set offered.text = offered.text + ' required: ' + (schema['required'] | join(', ')) -%}
            {%- endif -%}
        {%- endif -%}
    {%- endfor -%}
    {%- if not messages or messages[0]['role'] not in ['system', 'developer'] -%}
        {{- '<|im_start|>system\n' + offered.text + '<|im_end|>\n' -}}
    {%- endif -%}
{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\n' -}}
    {%- if message['tool_calls'] -%}
        {%- if message['content'] -%}
            {{- message['content'] + '\n' -}}
        {%- endif -%}
        {%- for call in message['tool_calls'] -%}
            {%- set function = call['function'] if call['function'] else call -%}
            {%- if not loop.first -%}
                {{- '\n' -}}
            {%- endif -%}
            {{- '<tool_call>{"name": "' + function['name'] + '", "arguments": ' -}}
            {%- if function['arguments'] is string -%}
                {{- function['arguments'] -}}
            {%- else -%}
                {{- function['arguments'] | tojson -}}
            {%- endif -%}
            {{- '}</tool_call>' -}}
        {%- endfor -%}
    {%- else -%}
        {{- message['content'] + '' -}}
    {%- endif -%}
    {%- if loop.first and tools and message['role'] in ['system', 'developer'] -%}
        {{- ('\n\n' if message['content'] else '') + offered.text -}}
    {%- endif -%}
    {{- '<|im_end|>' + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
""".strip()

PLAIN_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""What `chatml` was before it rendered tools; files of then have it."""
