"""From a load to a deployment: replicas, cost, files. Open `plan.py` first."""
