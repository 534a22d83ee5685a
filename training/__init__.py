"""How to teach a backbone and measure it: data, tasks, and the engine that runs them."""
