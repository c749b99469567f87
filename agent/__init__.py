"""The device room: keeps exactly one good model serving, inside its budget, and reports what it sees."""
