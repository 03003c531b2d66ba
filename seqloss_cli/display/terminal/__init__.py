"""Results for people, in a terminal. Every text from outside is escaped before it is shown."""
