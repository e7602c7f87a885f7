"""A real installation whose processes are killed, frozen and stopped at random: is all back, and is nothing broken?"""
