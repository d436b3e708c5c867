"""Chat templates with the habits of those in the field."""

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The plain one."""

TRIMMED = CHATML.replace("m['content']", "m['content'] | trim")
"""Changes content."""

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Marks what is generated, without the end of the turn."""

ANSWERS_MARKED = MARKED.replace(
    "{% generation %}{{ m['content'] }}",
    "{% set parts = m['content'].split('</think>') %}"
    "{% if parts | length > 1 %}{{ parts[0] + '</think>' }}{% endif %}"
    "{% generation %}{{ parts[-1] }}",
)
"""Marks what follows the thinking."""

SIGNED = MARKED.replace("{% endgeneration %}", "{% endgeneration %}{{ ' (sent)' }}")
"""Writes something of its own between what it marks and the end of the turn."""

COUNTING = "{{ messages | length }} messages\n" + CHATML
"""Begins otherwise with every message."""

STRIPPING = (
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Hides the thinking of earlier turns."""

OPENING = (
    "{% for m in messages %}{% set c = m['content'] %}{% if m['role'] == 'assistant' %}"
    "{% set c = c.split('</think>')[-1].strip() %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
"""Opens the thinking in the prompt and hides it in every turn."""

OPENING_CALLS = OPENING.replace(
    "+ c + '<|im_end|>\n' }}", "+ c }}{{ m.tool_calls or '' }}{{ '<|im_end|>\n' }}"
)
"""The same, with tool calls."""

BARE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""Has no control tokens at all."""

TRAILING = CHATML.replace(
    "{% endfor %}", "{% endfor %}{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}"
)
"""Ends the conversation, not the turn, with a token of its own."""

TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for call in m.tool_calls or [] %}"
    "{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Knows tools and calls."""

RESPONDING = TOOLS.replace(
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}",
    "{% if m['role'] == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>' + m['content'] + '</tool_response>' }}{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% endif %}",
)
"""Puts what a tool says between marks of its own."""
