# %% [markdown]
# # A variable found
