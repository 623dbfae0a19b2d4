"""What every process of the product does alike: its console, its errors for people, its signals, and URIs without their secrets."""
