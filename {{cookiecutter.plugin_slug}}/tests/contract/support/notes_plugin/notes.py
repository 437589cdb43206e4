"""A typical plugin: a configuration, a command, and its own data."""

from typing import Any

from errbot import BotPlugin, botcmd


class Notes(BotPlugin):
    """Keep notes."""

    def get_configuration_template(self) -> dict[str, str]:
        """Show what `!plugin config` accepts."""
        return {"GREETING": "Hello"}

    @botcmd
    def note(self, _message: Any, text: str) -> str:
        """Store a note."""
        with self.mutable("notes", []) as notes:
            notes.append(text)
        return f"Noted: {text}"

    @botcmd
    def notes(self, _message: Any, _arguments: str) -> str:
        """Show the greeting and the notes."""
        greeting = self.config["GREETING"] if self.config else "no greeting"
        return f"{greeting}: {', '.join(self.get('notes', []))}"
