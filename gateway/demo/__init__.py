"""The demonstration: a digit classifier, trained, served and queried."""
