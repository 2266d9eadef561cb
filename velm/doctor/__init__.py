"""`velm doctor` checks data and config without training; `velm selfcheck` checks laws of training (`doctor/laws`)."""
