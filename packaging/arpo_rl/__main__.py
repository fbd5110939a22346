from arpo_rl import main

main()
