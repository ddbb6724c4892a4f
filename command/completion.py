"""What makes a shell complete verbs, keys and presets."""

from __future__ import annotations

from ..refusal import ConfigError
from ..settings.catalogue import catalogue
from ..settings.usage import VERBS, preset_names

_BASH = """# Completion for bash; belongs into ~/.local/share/bash-completion/completions/gradinversion.
_gradinversion() {{
  local word="${{COMP_LINE:0:COMP_POINT}}"
  word="${{word##* }}"
  local words="{words}"
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  # The shell takes a word apart at its equals sign: what stands before that is there already.
  case "$word" in
    preset=*) COMPREPLY=("${{COMPREPLY[@]#preset=}}") ;;
    *=*) COMPREPLY=($(compgen -f -- "${{word#*=}}")) ;;
  esac
}}
complete -o nospace -F _gradinversion gradinversion
"""


def completion(shell: str) -> str:
    """A script for a shell that completes the command.

    Raises:
        ConfigError: It is a shell that there is none for.
    """
    if shell != "bash":
        raise ConfigError([f"--completion {shell}: give bash; zsh reads the same after `autoload bashcompinit`."])
    presets = [f"preset={name}" for name in preset_names()]
    names = [f"{name}=" for name in catalogue() if name != "preset"]
    return _BASH.format(words=" ".join([*VERBS, "--help", "--version", *presets, *names]))
