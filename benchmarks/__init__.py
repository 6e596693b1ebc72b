"""Speed and memory of every op beside what people use today.

python -m pytest benchmarks --benchmark-only --benchmark-json=benchmarks/results/cpu.json
python -m benchmarks.table benchmarks/results/cpu.json --plot benchmarks/results/cpu.png
"""
