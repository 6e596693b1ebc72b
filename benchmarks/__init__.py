"""Speed and memory of every op beside what people use today; see ``results/README.md``."""
