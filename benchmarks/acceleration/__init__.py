"""Speed and fidelity of every recipe and every rival: the rows, how one is measured, and the command."""
