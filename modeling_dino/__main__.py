"""`python -m modeling_dino`, so that `accelerate launch -m modeling_dino` works."""

from dino_command import main


if __name__ == "__main__":
    main()
