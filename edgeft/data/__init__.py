"""Reading, checking and rendering of chat data. No torch here."""
