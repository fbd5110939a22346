"""`python -m arpo_rl train`: a command of the code beside this file."""

from arpo_rl import main

main()
