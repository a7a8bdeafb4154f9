// Answer one message with an ONNX folder of layout transformers.js: node app.mjs FOLDER DTYPE TEXT
//
//   npm install @huggingface/transformers      (which runs onnxruntime-node; in a page it runs onnxruntime-web)
//
// DTYPE is transformers.js' word for the folder's: q4, q8, fp16 or fp32. Nothing is fetched.

import { resolve } from 'node:path';

process.env.ORT_DISABLE_TELEMETRY ??= '1'; // onnxruntime reads it when it is loaded, so the import comes after it
const { AutoModelForCausalLM, AutoTokenizer, env } = await import('@huggingface/transformers');

const [folder, dtype, text] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = '/';

const tokenizer = await AutoTokenizer.from_pretrained(resolve(folder));
const model = await AutoModelForCausalLM.from_pretrained(resolve(folder), { dtype });
const messages = [{ role: 'user', content: text }];
const inputs = tokenizer.apply_chat_template(messages, { add_generation_prompt: true, return_dict: true });
const output = await model.generate({ ...inputs, max_new_tokens: 64, do_sample: false });
const answer = output.slice(null, [inputs.input_ids.dims[1], null]);
process.stdout.write(tokenizer.batch_decode(answer, { skip_special_tokens: true })[0]);
