"""SSD in LangChain (`ssd_integrations.langchain`) and LlamaIndex (`ssd_integrations.llama_index`)."""
