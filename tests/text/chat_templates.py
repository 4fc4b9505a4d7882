"""Chat templates in the style of public ones, expressions that try the corners of the language, and jinja2 itself."""

import json

import oracle_texts
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}


class Generation(Extension):
    """transformers' generation blocks, which only mark what they hold."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _raise(message):
    raise TemplateError(message)


_environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
_environment.filters["tojson"] = lambda value, ensure_ascii=False: json.dumps(value, ensure_ascii=ensure_ascii)
_environment.globals["raise_exception"] = _raise


def render(source, messages, variables=None):
    """The text; None where jinja2 refuses."""
    try:
        return _environment.from_string(source).render(
            messages=messages, add_generation_prompt=True, **(VARIABLES if variables is None else variables)
        )
    except (TemplateError, TypeError, ZeroDivisionError):
        return None


def conversations(rng, count):
    for _ in range(count):
        messages = []
        if rng.random() < 0.4:
            messages.append({"role": "system", "content": oracle_texts.random_text(rng)})
        for turn in range(rng.randrange(0, 5)):
            content = rng.choice(["", " ", "\n\n"]) + _plain(oracle_texts.random_text(rng)) + rng.choice(["", " ", "\n"])
            if turn % 2 and rng.random() < 0.5:
                content = f"<think>\nhm {content}\n</think>\n\n{content}"
            message = {"role": "assistant" if turn % 2 else "user", "content": content}
            if rng.random() < 0.2:
                message["name"] = "n\u00e9"
            messages.append(message)
        for message in messages:
            message["content"] = _plain(message["content"])
        yield messages


def _plain(text):
    return text.replace("<|", "< |").replace("<both>", "").replace("<EOT>", "")


CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# Whitespace control, namespace, reversed loop, thinking parts cut out; the tool branches are never taken.
QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {{- tool_call.arguments | tojson }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# Alternating roles enforced, the system text put into the first turn.
MISTRAL = """\
{%- if messages and messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{#- This block checks for alternating roles -#}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " ~ message["content"] ~ "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("only user and assistant roles, got " + message.role|tojson) }}
    {%- endif %}
{%- endfor %}
"""

# Blocks on lines of their own: trim_blocks and lstrip_blocks at work.
LINES = """\
{# a comment #}
{% if bos_token is defined and bos_token %}
{{ bos_token }}
{% endif %}
{% set names = {"user": "HUMAN", 'assistant': "ASSISTANT", "system": "SYSTEM"} %}
  {% for message in messages %}
    {% if loop.first and message.role != 'system' %}
<role>SYSTEM</role>detailed thinking off{{ eos_token }}
    {% endif %}
    {% if message.content == '' %}
      {% continue %}
    {% endif %}
<role>{{ names[message.role] }}</role>{{ message.content }}{{ message.name | default('') }}  {{- eos_token }}
    {% if loop.index > 3 %}{% break %}{% endif %}
  {% else %}
nothing to say
  {% endfor %}
  x {%+ if true %} y {% endif +%}
{% set block %}
[{{ messages | length }}{{ ' and more' if messages | length > 2 }}]
{% endset %}
{{ block | trim }} {%- generation -%}  made {% endgeneration %}
<role>ASSISTANT</role>
"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "qwen3": QWEN3, "mistral": MISTRAL, "lines": LINES, "gemma": GEMMA}

TRIMMED = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content | trim ~ eos_token }}{% endfor %}"
    "<|im_start|>assistant\n"
)

# Templates whose tokens are special in the vocabularies of the test.
ENCODED = [CHATML, QWEN3, TRIMMED]

EXPRESSIONS = [
    "{{ " + expression + " }}"
    for expression in r"""
1 + 2 * 3 - 4 // 3 % 2 ~ 'x' ~ 2 ** 3 ** 2
-7 // 2 ~ ' ' ~ -7 % 3 ~ ' ' ~ 7 // -2 ~ ' ' ~ 7 / 2 ~ ' ' ~ 1.5 * 2 ~ ' ' ~ 6 / 3
1 < 2 < 3 and not 3 < 2 or false
'a' in 'cat' ~ ('z' not in 'cat')
('b' in ['a', 'b']) ~ ('k' in {'k': 1}) ~ (1 in [1.0])
messages[0].content[3] ~ messages[0]['content'][-3:] ~ messages[0].content[::-1] ~ messages[0].content[1:8:2]
messages[-1].content[5:] ~ '|' ~ messages[0].content[:-100] ~ '|' ~ messages[0].content[100:] ~ '|'
messages[5:] | length ~ messages[::-1][0].role ~ messages[-1:][0].role ~ messages[:1] | length
messages[1].content.strip() ~ '|' ~ messages[1].content.lstrip() ~ '|' ~ messages[1].content.rstrip() ~ '|'
'xxabcxx'.strip('x') ~ 'abcabc'.rstrip('bc') ~ 'été'.strip('é')
messages[0].content | upper ~ messages[0].content | lower ~ 'hello wORLD' | title ~ 'hELLO w' | capitalize
'ß' | upper ~ 'ΣΑΣ' | lower
'a,b,,c'.split(',') | join('|') ~ 'a,b,,c'.split(',', 1) | join('|') ~ 'a,b,,c'.rsplit(',', 1) | join('|')
' a  b '.split() | join('|') ~ ''.split() | length ~ ''.split(',') | length
'aXbXc' | replace('X', '--') ~ 'aXbXc'.replace('X', '', 1)
'abc'.startswith('ab') ~ 'abc'.endswith(('x', 'bc')) ~ 'abc'.find('c') ~ 'été'.find('z')
'pre-x'.removeprefix('pre-') ~ 'x.py'.removesuffix('.py') ~ ', '.join(['a', 'b'])
undefined_thing ~ '|' ~ (undefined_thing is defined) ~ (undefined_thing | default('d')) ~ ('' | default('e', true))
undefined_thing.field
undefined_thing + 1
messages[0].missing ~ messages[0]['missing'] ~ messages[9] ~ 'abc'[7]
messages[0].missing.deeper
none ~ true ~ False ~ None ~ 1.0 ~ 0.1 ~ 100000
[1, 'a', none, true, {'k': [1.5, 'é"\n']}] | tojson
{'b': 1, 'a': 'x'} | tojson ~ messages[0] | tojson
[1, 2, 3] | first ~ [1, 2, 3] | last ~ [] | first ~ 'abc' | first ~ ([1, 2] | reverse | list | join) ~ ('abc' | reverse)
'abc' | list | join('-') ~ [1, 2] | length ~ 'été' | length ~ {'a': 1} | length ~ undefined_thing | length
1 if false ~ 'x' if true else 'y'
(1 if false) ~ '|' ~ ('a' if [] else 'b' if 0 else 'c')
2 is even ~ (3 is odd) ~ (3 is divisibleby 3) ~ (1 is number) ~ ('a' is string) ~ (none is none) ~ ([] is sequence)
{} is mapping ~ ([] is iterable) ~ (1 is integer) ~ (1.5 is float) ~ (true is boolean) ~ (true is true) ~ (1 is true)
1 is not none and 2 is not defined
'a' is in ['a'] ~ (1 is eq 1) ~ (2 is gt 1) ~ (2 is lt(1)) ~ ('ab' is lower) ~ ('AB' is upper) ~ ('12' is lower)
messages | map(attribute='role') | join(',') ~ (messages | selectattr('role', 'equalto', 'user') | list | length)
messages | rejectattr('role', 'eq', 'user') | map(attribute='content') | first
range(3) | join(',') ~ range(1, 4) | join(',') ~ range(5, 0, -2) | join(',')
dict(a=1, b='x').items() | list | length ~ {'a': 'v'}.get('a') ~ {'a': 'v'}.get('z', 'no') ~ {'a': 'v'}.get('z')
{'a': 1, 'b': 2}.keys() | join ~ {'a': 'x'}.values() | join ~ ({'a': 1} | items | list | length)
'a' 'b' "c\n\t\\\'\x41\u00e9\q"
'a' * 3 ~ ([1] + [2]) | join
'a' + 1
1 / 0
'a' < 'b' ~ ('é' > 'z') ~ ([] == []) ~ ([1] == [1.0]) ~ ({} == none) ~ (1 == true) ~ ('1' == 1)
1 < 'a'
raise_exception('no')
not_a_function()
(1, 2) | join('-') ~ () | length
- 3 + +2 ~ -'3' | length
not messages or messages[0].role
'' or 'x' ~ ('' and 'x')
""".strip().split("\n")
] + [
    "{% for a, b in {'x': 1, 'y': 2}.items() %}{{ a }}={{ b }}{{ ';' if not loop.last }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ m.role }}{% else %}none{% endfor %}",
    "{% for i in range(4) %}{{ loop.index }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}",
    "{% set x = 1 %}{% for i in range(3) %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=1) %}{% for i in range(3) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}",
    "{% if true %}{% set x = 5 %}{% endif %}{{ x }}",
    "{% set a, b = 1, 'two' %}{{ a }}{{ b }}",
    "{% set x %} in {{ 1 + 1 }} {% endset %}[{{ x }}]",
    "{% for i in [1,2,3,4] %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for c in 'aé' %}{{ c }}-{% endfor %}{% for x in undefined_thing %}no{% endfor %}",
    "a\r\nb\rc\n",
    "a\n\n",
    "  {% if 1 %}  \n  x  \n  {% endif %}  \n y",
    "  {%- if 1 -%}  \n  x  \n  {%- endif -%}  \n y",
    "x  {%+ if 1 %}\n  y{%+ endif +%}\n  z",
    "a {# c #}\n  {# d -#}  \n b {#- e #} f {{ '}}' }} {{ '%}' }}",
    "{{ {'a': {'b': 1}}.a.b }}{{ {'a': [1]}['a'][0] }}{{ [[1, 2], [3]][0].1 }}",
    "{{ 'x' }}  \n  {{- 'y' -}}  \n {{ 'z' }}",
    "{% set messages = messages[1:] %}{{ messages[0].role }}{{ messages | length }}",
]
